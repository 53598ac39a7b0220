"""`tidewheel status`: the fleet as its topics tell it, and how far the workers are behind.

Two rates, both as they are known without waiting. **Produced**: the sum of what the devices said
last of the events that they answered per second, of those that are not silent and have not
stopped. **Scored**: the events of the windows that were reported in the last RATE_S, by the
reports' timestamps, divided by RATE_S, also where the fleet has run for less. Windows are reported
as a whole, so the second rate follows the first by a window's length and its lateness.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from rich.console import Console
from rich.table import Table

from compose.reports.follower import Lag, lag_line, read_lag
from compose.reports.problems import Problem, Status, problems
from compose.reports.terminal import moment, print_json, table
from streams.contract.accounting import LabelDelay
from streams.contract.decisions import DesiredState
from streams.contract.documents import DeviceState, Document
from streams.contract.task import Task
from streams.contract.task.metrics import named
from streams.fleet.following import ALL_TOPICS, read_view
from streams.fleet.view import CONDITIONS, NO_AGENT, RATE_S, FleetView
from streams.fleet.wording import counted, digits, duration, share
from streams.kafka.settings import BrokerSettings

KEPT = 3  # devices that keep an earlier version, by name
ROWS, CALM = 50, CONDITIONS.index("fine")  # of the table; the rank of what is as it should be
CONNECT_S = 2.0  # a person waits: a broker that does not answer by then is named as absent


def read_status(settings: BrokerSettings, task: Task) -> Status:
    """The last snapshot and what the topics have had since; BrokerUnavailable when they cannot be
    read."""
    with ThreadPoolExecutor(1) as threads:
        lag = threads.submit(read_lag, settings, task, CONNECT_S)
        view = read_view(settings, task.id, CONNECT_S, ALL_TOPICS)
        return Status(view, lag.result(), time.time())


class StatusReport(Document):
    """The output of `tidewheel status --json`. without_agent: devices that have events in windows
    and no state; each has as much of one as is known. canary: what its windows show. rates: events
    a second, as devices say, and as windows were reported in the last minute. truth: by version the
    labelled events that are right, and all of them. drift: by device the
    channel that drifted most, where it alarms. labels: with --labels."""

    task: str
    release: DesiredState
    canary: str
    problems: list[Problem]
    devices: list[DeviceState]
    without_agent: list[DeviceState]
    windows: int
    agreement: dict[str, float | None]
    windows_metric: str | None
    rounds: dict[str, int]
    last_outcome: str | None
    truth: dict[str, tuple[int, int]]
    rates: dict[Literal["produced_per_s", "scored_per_s"], float]
    lag: Lag
    drift: dict[str, str]
    labels: LabelDelay | None


def report_of(status: Status) -> StatusReport:
    view, last = status.view, status.view.last_finished
    kinds = ("aggregated", "admitted", "refused", "failed", "promoted", "rejected")
    return StatusReport(
        task=view.task,
        release=view.standing,
        canary=view.canary.words,
        problems=problems(status),
        devices=[state for _, state in sorted(view.devices.items())],
        without_agent=[state for _, state in sorted(view.producers.items())],
        windows=view.windows,
        agreement={model: found.value for model, found in view.agreement.items()},
        windows_metric=view.latest_agreement.metric if view.agreement else None,
        rounds={kind: view.count(kind) for kind in kinds} | {"failed": _failed(view)},
        last_outcome=None if last is None else last.reason,
        truth=_truth(view),
        rates={
            "produced_per_s": round(status.produced_per_s, 3),
            "scored_per_s": round(status.scored_per_s, 3),
        },
        lag=status.lag,
        drift=status.alarms,
        labels=status.labels,
    )


def print_status(status: Status, console: Console, *, as_json: bool) -> None:
    """Print it; the table has the ROWS most urgent devices."""
    if as_json:
        print_json(report_of(status), console)
        return
    states = [state for _, state in sorted(status.view.everyone.items())]
    chosen = sorted(
        sorted(states, key=lambda s: (_urgency(status, s), -status.drifted(s.device)))[:ROWS],
        key=lambda s: s.device,
    )
    console.print(_table(status, chosen))
    if left := len(states) - len(chosen):
        urgent = sum(_urgency(status, state) < CALM for state in states)
        more = max(0, urgent - ROWS)
        all_of = "the console and --json have all"
        console.print(f"{counted(left, 'more device')}, {more:,} need attention: {all_of}")
    for line in _lines(status):
        console.print(line, highlight=False, markup=False)


def _urgency(status: Status, state: DeviceState) -> float:
    """Return the rank of the device's condition, and CALM where all is well; a device that does
    not serve the released version comes before those that do."""
    stable = status.view.standing.stable if state.phase != NO_AGENT else None
    other = stable is not None and state.active != stable.model
    return min(CONDITIONS.index(status.conditions[state.device]), CALM) - other / 2


def _activity(status: Status, state: DeviceState) -> str:
    if state.error or status.conditions[state.device] == "silent":
        return state.error or "silent"
    own = state.challenger
    if own is None or not own.answers or state.phase == "stopped":
        return state.phase
    return "answers with its own copy" if own.origin == "copy" else own.text.partition(":")[0]


def _table(status: Status, states: Sequence[DeviceState]) -> Table:
    view, metric = status.view, named(status.view.row_metric)
    columns = ("device", "activity", "serves", "previous")
    right = ("produced", "delivered", "dropped", "pending", metric, "last seen")

    def row(state: DeviceState) -> Sequence[str]:
        age, score = status.now_s - state.time_us / 1e6, state.accuracy.get(state.active)
        return (
            state.device,
            _activity(status, state),
            state.active,
            state.previous or "",
            *_account(state),
            share(score.of_labelled if score else None),
            moment(state.time_us) if status.past else f"{duration(age)} ago",
        )

    title = f"{view.task}: {devices_line(view)}"
    return table(title, (*columns, *right), map(row, states), right)


def _account(state: DeviceState) -> Sequence[str]:
    """Return produced, delivered, dropped and pending events; nobody counts them without an
    agent."""
    if state.phase == NO_AGENT:
        return ["-"] * 4
    dropped = sum(state.dropped.values())
    return [str(x) for x in (state.produced, state.delivered, dropped, state.pending)]


def _kept(view: FleetView) -> Iterator[str]:
    """Tell which devices answer with other weights than those served; by name where it helps
    most."""
    found = [
        (c.base_loss - c.loss, s.device, c.text)
        for s in view.devices.values()
        if (c := s.challenger) and c.answers and s.phase != "stopped"
    ]
    if found:
        answer = "answers" if len(found) == 1 else "answer"
        every = counted(len(view.devices), "device")
        yield f"{len(found):,} of {every} {answer} with an adapter, an earlier version or a copy:"
        for _, device, text in sorted(found, reverse=True)[:KEPT]:
            yield f"  {device} {text}"
        if len(found) > KEPT:
            yield f"  and {len(found) - KEPT:,} more"


def _truth(view: FleetView) -> dict[str, tuple[int, int]]:
    judged = {name: a for name, a in view.agreement.items() if a.labelled > 0}
    return {n: (a.correct, a.labelled) for n, a in judged.items() if not a.lower_is_better}


def sums(view: FleetView) -> Iterator[str]:
    """Yield what is released, what windows and labels say of each version, and what was learned."""
    late = f", {view.windows_late:,} revised by late events" if view.windows_late else ""
    yield f"{release_line(view)}; {counted(view.windows, 'window')} closed{late}"
    yield from _kept(view)
    for model, found in view.agreement.items():
        yield f"{model}: {found.called} {share(found.value)} in {counted(found.judged, 'event')}"
    for model, (known, of) in _truth(view).items():
        yield f"{model}: {digits(known / of)} right on {counted(of, 'true label')}"
    rounds, updates = view.count("aggregated"), view.count("admitted")
    yield (
        f"{counted(rounds, 'round')}: {counted(updates, 'update')} admitted, "
        f"{view.count('refused')} refused, {_failed(view)} failed; "
        f"{counted(view.count('promoted'), 'run')} promoted, {view.count('rejected')} rejected"
    )


def _failed(view: FleetView) -> int:
    """Return how many updates failed on their devices."""
    return view.counts["failed:device"]


def _lines(status: Status) -> Iterator[str]:
    yield from sums(status.view)
    yield (
        f"devices produce {status.produced_per_s:.1f} events a second; workers scored "
        f"{status.scored_per_s:.1f} a second over the last {RATE_S} s"
    )
    if status.view.canary.words:
        yield status.view.canary.words
    if status.lag.partitions:
        yield lag_line(status.lag)
    if (labels := status.labels) is not None:
        delay = labels.delay_s
        late = f"; the median label came {duration(delay)} after its event" if delay else ""
        all_of = counted(labels.events, "event")
        have = f"{labels.labelled:,} of {all_of} of the 7 days up to the newest event have a label"
        yield have + late
    yield from (problem.line for problem in problems(status))


def devices_line(view: FleetView) -> str:
    """Return how many devices there are, and how many of them have no agent."""
    line = counted(len(view.everyone), "device")
    return f"{line}, {len(view.producers)} without an agent" if view.producers else line


def release_line(view: FleetView) -> str:
    """What devices are to serve."""
    standing = view.standing
    if standing.stable is None:
        return "nothing is released"
    line = f"{standing.stable.model} is released"
    if standing.offered is not None:
        line += f", {standing.offered.model} offered to {view.offered_to}"
        line += ", paused" if standing.paused is not None else ""
    if standing.candidate is not None:
        line += f", {standing.candidate.model} waits for its rollout"
    return line
