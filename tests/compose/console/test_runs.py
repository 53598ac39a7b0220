"""Runs and their rounds, of events in any order."""

from dataclasses import asdict
from typing import Any

from compose.console import learning
from streams.contract.documents import RoundEvent
from tests.compose.messages import TASK


def two_runs() -> list[RoundEvent]:
    """The first dies in its second round, the second goes on and is promoted."""
    clock = iter(range(1, 1000))

    def event(run: str, kind: str, number: int = 0, **fields: Any) -> RoundEvent:
        about = {"run": run, "kind": kind, "round": number, "time_us": next(clock)}
        return RoundEvent.of_fields({**about, **fields})

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


def test_a_run_has_each_round_with_its_figures() -> None:
    events = two_runs()
    first, second = runs = learning.history([*reversed(events), *events])  # twice, in any order
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
    assert learning.report_of(TASK, events).runs == runs
