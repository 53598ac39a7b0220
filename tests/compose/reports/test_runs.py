"""What `tidewheel rounds` prints, as a table and as JSON, from event logs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compose.reports import rounds
from streams.contract.documents import RoundEvent
from tests.compose.cli.test_cli import TINY, fails, tidewheel
from tests.compose.messages import TASK
from tests.compose.reports.test_views import shown


def two_runs() -> list[RoundEvent]:
    """The first dies in its second round, the second goes on and is promoted."""
    clock = iter(range(1, 1000))

    def event(run: str, kind: str, number: int = 0, **fields: Any) -> RoundEvent:
        about = {"run": run, "kind": kind, "round": number, "time_us": next(clock)}
        return RoundEvent.model_validate({**about, **fields})

    def one_round(run: str, number: int, **fields: Any) -> list[RoundEvent]:
        figures = {"devices_before": 0.6 + number / 100, "seconds": 7.25, "epsilon": 1.5 * number}
        held_out = {"held_out": 0.7, "held_out_segments": 9}
        return [
            event(run, "started", number, metrics={"nodes": 3}, base="1-a", **fields),
            *(event(run, "admitted", number, device=f"d{n}", **fields) for n in (0, 1)),
            *(event(run, "refused", number, device=f"d{n}", reason=f"norm: {n} is over", **fields)
              for n in (2, 3)),
            event(run, "failed", number, device="d4", reason="no reply", **fields),
            event(run, "aggregated", number, metrics=figures, **fields),
            event(run, "evaluated", number, metrics=held_out, **fields),
        ]  # fmt: skip

    gate, on = {"held_out_base": 0.5, "held_out": 0.75}, {"resumed_from": "r1"}
    return [
        event("", "asked", reason="manual"),  # is no run
        event("r1", "requested", reason="agreement is low"),
        *one_round("r1", 1),
        event("r1", "started", 2, metrics={"nodes": 3}),
        event("r2", "resumed", 1, **on),
        *one_round("r2", 2, **on),
        event("r2", "evaluated", 2, metrics=gate, **on),
        event("r2", "promoted", 2, model="2-b", **on),
        event("r2", "finished", reason="promoted", **on),
    ]


def test_rounds_has_each_round_with_its_figures_as_table_and_json() -> None:
    events = two_runs()
    first, second = runs = rounds.history([*reversed(events), *events])  # twice, in any order
    assert (first.requested, first.base, first.outcome) == (
        "agreement is low", "1-a", "resumed by run r2",
    )  # fmt: skip
    assert asdict(first.rounds[0]) == {
        "number": 1, "nodes": 3, "admitted": 2, "failed": 1, "refused": {"norm": 2},
        "held_out": 0.7, "devices_before": 0.61, "seconds": 7.25, "epsilon": 1.5,
        "outcome": "averaged",
    }  # fmt: skip
    assert (second.resumed_from, second.outcome) == ("r1", "promoted 2-b")
    assert second.gate == {"held_out_base": 0.5, "held_out": 0.75}
    text = shown(lambda console: rounds.print_rounds(TASK, runs, console, as_json=False))
    assert "tiny: 2 runs, 3 rounds" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()[4:]]
    lines = [row for row in rows if row and row[1]]
    assert lines[0] == ["r1", "1", "3", "2", "norm 2, no answer 1", "0.70", "0.61", "7.2", "1.50",
                        "averaged"]  # fmt: skip
    assert [line[-1] for line in lines[1:]] == ["resumed by run r2", "promoted 2-b"]
    data = shown(lambda console: rounds.print_rounds(TASK, runs, console, as_json=True))
    assert json.loads(data)["runs"] == [asdict(run) for run in runs]


def test_rounds_reads_event_logs_up_to_where_a_kill_cut_them(tmp_path: Path) -> None:
    events = [event for event in two_runs() if event.run]
    for run in ("r1", "r2"):
        folder = tmp_path / ".tidewheel" / "runs" / run
        folder.mkdir(parents=True)
        lines = [e.encode() for e in events if e.run == run]
        (folder / "rounds.jsonl").write_bytes(b"\n".join(lines) + b'\n{"run": "r')
    assert rounds.from_journals(tmp_path / ".tidewheel" / "runs") == events
    done = tidewheel("rounds", TINY, "--json", folder=tmp_path)
    assert [run["run"] for run in json.loads(done.stdout)["runs"]] == ["r1", "r2"]
    away = tidewheel("rounds", TINY, "--kafka", "127.0.0.1:1", folder=tmp_path)
    fails(away, 1, "127.0.0.1:1")
