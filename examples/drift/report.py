"""What `make drift-demo` has seen: its tables and lines."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from examples.drift.analysis import AnsweredWindow, HeldOutAnswers, Moment
from streams.fleet.wording import share


@dataclass
class DemoResult:
    """What was seen; `missing` is what should have happened and did not."""

    before: AnsweredWindow = field(default_factory=AnsweredWindow)
    otherwise: AnsweredWindow = field(default_factory=AnsweredWindow)
    recovered: AnsweredWindow = field(default_factory=AnsweredWindow)
    held_before: HeldOutAnswers = field(default_factory=HeldOutAnswers)
    held_otherwise: HeldOutAnswers = field(default_factory=HeldOutAnswers)
    held_recovered: HeldOutAnswers = field(default_factory=HeldOutAnswers)
    moments: list[Moment] = field(default_factory=list)
    canary: str = ""
    canary_before: float = 0.0
    canary_bad: float = 0.0
    others_before: float = 0.0
    others_bad: float = 0.0
    bad_windows: int = 0  # of the canary, when it was taken back
    bad_windows_in_all: int = 0  # with answers of it, until it was gone
    bad_seconds: float = 0.0
    bad_devices: list[str] = field(default_factory=list)  # that have answered with it
    gate: dict[str, str] = field(default_factory=dict)
    attacks: dict[str, str] = field(default_factory=dict)  # what came of a hostile device's updates
    control: str = ""  # what came of a run without it
    missing: list[str] = field(default_factory=list)


def show(outcome: DemoResult, terminal: Console) -> None:
    """The table at the end."""
    table = Table(title="people with remounted phones")
    columns = ("agreement with the teacher", "accuracy", "accuracy, held out", "windows")
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    rows = {
        "before": (outcome.before, outcome.held_before),
        "remounted": (outcome.otherwise, outcome.held_otherwise),
        "behind an adapter": (outcome.recovered, outcome.held_recovered),
    }
    for name, (found, held) in rows.items():
        accuracy = share(found.accuracy, found.labelled)
        apart = share(held.accuracy, held.of)
        table.add_row(name, share(found.agreement), accuracy, apart, str(found.windows))
    table.caption = (
        "held out: on segments that no training has seen (how many, each replay of one again), "
        "until the first alarm, until all have an adapter, and then"
    )
    terminal.print(table)
    times = Table(title="since the phones were remounted", show_lines=False)
    for name in ("seconds", "windows a phone", "what"):
        times.add_column(name, justify="left" if name == "what" else "right")
    for moment in outcome.moments:
        times.add_row(f"{moment.seconds:.1f}", f"{moment.windows:.1f}", moment.what)
    terminal.print(times)
    o = outcome
    lines = [
        f"bad for {o.canary} alone: {_bad_for_the_canary(o)}",
        *(f"poisoned, {name}: put before the gate: {why}" for name, why in o.gate.items()),
        *(f"a hostile device, {name}: {what}" for name, what in o.attacks.items()),
        f"a run of the fleet alone: {o.control or 'not reached'}",
        *(f"MISSING: {text}" for text in o.missing),
    ]
    for line in lines:
        terminal.print(line, markup=False, highlight=False, soft_wrap=True)


def _bad_for_the_canary(o: DemoResult) -> str:
    """What came of the candidate; it has devices once all of it has happened."""
    if not o.bad_devices:
        return "not reached"
    return (
        f"right on {o.canary_before:.3f} of its segments, then on {o.canary_bad:.3f}; on the "
        f"others' {o.others_before:.3f}, then {o.others_bad:.3f}; taken back after "
        f"{o.bad_windows} windows, and gone {o.bad_seconds:.1f} s after the first one from "
        f"{', '.join(o.bad_devices)}, all that had it; {o.bad_windows_in_all} windows have "
        "answers of it"
    )
