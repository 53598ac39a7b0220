"""What `tidewheel rounds` tells is what the runs' events say."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from compose.reports.rounds import (
    RunSummary,
    from_journals,
    history,
    print_rounds,
)
from streams.contract.documents import RoundEvent
from tests.compose.cli.test_cli import TINY, fails, tidewheel

_clock = iter(range(1, 1_000_000))


def event(run: str, kind: str, number: int = 0, **fields: Any) -> RoundEvent:
    fields = {"round": number, "time_us": next(_clock), **fields}
    return RoundEvent.model_validate({"run": run, "kind": kind, **fields})


def one_round(run: str, number: int, **fields: Any) -> list[RoundEvent]:
    figures = {"devices_before": 0.6 + number / 100, "seconds": 7.25, "epsilon": 1.5 * number}
    return [
        event(run, "started", number, metrics={"nodes": 3}, base="1-a", **fields),
        event(run, "admitted", number, device="d0", **fields),
        event(run, "admitted", number, device="d1", **fields),
        event(run, "refused", number, device="d2", reason="norm: 9 is over", **fields),
        event(run, "refused", number, device="d3", reason="norm: 8 is over", **fields),
        event(run, "failed", number, device="d4", reason="no reply", **fields),
        event(run, "aggregated", number, metrics=figures, **fields),
        event(
            run, "evaluated", number, metrics={"held_out": 0.7, "held_out_segments": 9}, **fields
        ),
    ]


def two_runs() -> list[RoundEvent]:
    """The first dies in its second round, the second goes on and is promoted."""
    gate = {"held_out_base": 0.5, "held_out": 0.75}
    on = {"resumed_from": "r1"}
    return [
        event("r1", "requested", reason="agreement is low"),
        *one_round("r1", 1),
        event("r1", "started", 2, metrics={"nodes": 3}),
        event("r2", "resumed", 1, **on),
        *one_round("r2", 2, **on),
        event("r2", "evaluated", 2, metrics=gate, **on),
        event("r2", "promoted", 2, model="2-b", **on),
        event("r2", "finished", reason="promoted", **on),
    ]


def printed(runs: list[RunSummary], *, as_json: bool = False) -> str:
    text = io.StringIO()
    print_rounds("tiny", runs, Console(file=text, width=160), as_json=as_json)
    return text.getvalue()


def test_each_round_is_told_with_its_figures() -> None:
    events = two_runs()
    first, second = history([*reversed(events), *events])  # told twice, in any order
    assert (first.requested, first.base, first.outcome) == (
        "agreement is low", "1-a", "resumed by run r2",
    )  # fmt: skip
    assert [(r.number, r.outcome) for r in first.rounds] == [(1, "averaged"), (2, "not finished")]
    done = first.rounds[0]
    assert (done.nodes, done.admitted, done.failed, done.refused) == (3, 2, 1, {"norm": 2})
    assert (done.held_out, done.devices_before, done.seconds) == (0.7, 0.61, 7.25)
    assert done.epsilon == 1.5
    assert "3.00" in printed([second])
    assert (first.rounds[1].held_out, first.rounds[1].seconds) == (None, None)
    assert (second.resumed_from, second.model, second.outcome) == ("r1", "2-b", "promoted 2-b")
    assert second.gate == {"held_out_base": 0.5, "held_out": 0.75}
    assert [r.number for r in second.rounds] == [2]


def test_a_run_that_came_to_nothing_tells_why() -> None:
    (run,) = history(
        [
            event("r", "failed", reason="run q was of har: starting over"),
            event("r", "started", 1),
            event("r", "failed", 1, reason="no update was admitted"),
            event("r", "finished", reason="failed: no update was admitted in any round"),
        ]
    )
    assert run.outcome == "failed: no update was admitted in any round"
    assert [(r.nodes, r.outcome) for r in run.rounds] == [(None, "no update was admitted")]
    assert "failed: no update" in printed([run])


def test_what_was_asked_for_is_no_run() -> None:
    asked = event("", "asked", reason="manual")
    assert [run.run for run in history([asked, *two_runs()])] == ["r1", "r2"]


def test_the_table_and_the_json_say_the_same() -> None:
    runs = history(two_runs())
    text = printed(runs)
    assert "tiny: 2 runs, 3 rounds" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()[4:]]
    told = [row for row in rows if row and row[1]]
    assert told[0][:4] == ["r1", "1", "3", "2"]
    assert told[0][4:] == ["norm 2, no answer 1", "0.70", "0.61", "7.2", "1.50", "averaged"]
    assert (told[1][0], told[1][-1]) == ("", "resumed by run r2")
    assert (told[2][0], told[2][-1]) == ("r2", "promoted 2-b")
    found = json.loads(printed(runs, as_json=True))
    assert found["runs"][0]["rounds"][0]["refused"] == {"norm": 2}
    assert "0 runs" in printed([])


def test_journals_are_read_up_to_where_a_kill_cut_them(tmp_path: Path) -> None:
    events = two_runs()
    for run in ("r1", "r2"):
        folder = tmp_path / run
        folder.mkdir()
        lines = [e.encode() for e in events if e.run == run]
        (folder / "rounds.jsonl").write_bytes(b"\n".join(lines) + b'\n{"run": "r')
    assert from_journals(tmp_path) == events
    assert from_journals(tmp_path / "none") == []


def test_the_command_reads_the_state_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".tidewheel" / "runs" / "r1"
    folder.mkdir(parents=True)
    lines = [e.encode() for e in one_round("r1", 1)]
    (folder / "rounds.jsonl").write_bytes(b"\n".join(lines))
    done = tidewheel("rounds", TINY, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["run"] == "r1"
    away = tidewheel("rounds", TINY, "--kafka", "127.0.0.1:1", folder=tmp_path)
    fails(away, 1, "127.0.0.1:1")
