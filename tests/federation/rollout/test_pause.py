"""A rollout that a person has paused stays at its stage, or goes back, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from federation.registry import manual, registry
from federation.rollout import rollout as rollout_module
from federation.rollout.rollout import Plan
from federation.rollout.stage_policy import Choice, StageRules, StageVerdict
from streams.contract.decisions import Decision, Release
from tests.federation.rollout.test_rollout import KEY, Rig, rig
from tests.rig.unwrap import unwrap

__all__ = ["rig"]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """What the evaluation says: the one entry."""
    said: list[Choice] = ["wait"]
    monkeypatch.setattr(
        rollout_module,
        "evaluate",
        lambda *_, **__: StageVerdict(said[0], "why", {"e_fine": 1.0, "e_worse": 1.0}),
    )
    return said


def last(rig: Rig) -> Release:
    return unwrap(rig.registry.last())


def paused(rig: Rig) -> str:
    """A candidate in its first stage, paused; its name."""
    rig.devices(12)
    model = rig.candidate()
    assert rig.step() is not None
    assert manual.pause(rig.registry, KEY, "look at pump-3 first").made is not None
    return model


@pytest.mark.parametrize("verdict", ["go-on", "hold", "wait"])
def test_a_paused_rollout_stays_where_it_is(rig: Rig, says: list[Choice], verdict: Choice) -> None:
    paused(rig)
    before = rig.registry.desired()
    says[0] = verdict
    for rollout in (rig.rollout, rig.another()):  # the second one as after a restart
        assert rollout.step(last(rig), rig.fleet, rig.windows) is None
    assert rig.registry.desired() == before
    assert rig.kinds() == ["served", "candidate", "stage", "held"]


def test_a_pause_keeps_no_bad_version_on_devices(rig: Rig, says: list[Choice]) -> None:
    model = paused(rig)
    says[0] = "roll-back"
    made = unwrap(rig.another().step(last(rig), rig.fleet, rig.windows))
    after = made.decision
    assert (after.kind, after.model, after.reason) == ("rolled-back", model, "why")
    assert (after.standing.offered, after.standing.paused) == (None, None)
    assert rig.rollout.is_free(made)


def test_devices_that_refuse_a_paused_version_end_it(rig: Rig) -> None:
    model = paused(rig)
    rig.devices(12, refused={model: "crashed: 3 times within 600 s"})
    made = unwrap(rig.step())
    assert (made.kind, made.standing.paused) == ("rolled-back", None)


def test_no_run_starts_and_no_candidate_takes_its_place(rig: Rig, says: list[Choice]) -> None:
    paused(rig)
    assert not rig.rollout.is_free(last(rig))
    rig.candidate(3)
    assert rig.step() is None
    says[0] = "hold"
    assert rig.step() is None
    assert manual.resume(rig.registry, KEY).made is not None
    held = unwrap(rig.step())
    assert held.kind == "held"  # now the controller's own, which another candidate ends
    back = unwrap(rig.step())
    assert back.kind == "rolled-back"


def test_a_resumed_rollout_goes_on_from_its_stage(rig: Rig, says: list[Choice]) -> None:
    model = paused(rig)
    stage: Decision = rig.registry.decisions()[2]
    outcome = manual.resume(rig.registry, KEY, "pump-3 is well")
    assert outcome.made is not None
    resumed = outcome.made.decision
    assert (resumed.kind, resumed.model) == ("stage", model)
    assert resumed.standing == stage.standing
    says[0] = "go-on"
    onward = unwrap(rig.step())
    assert (onward.kind, onward.standing.stage) == ("stage", 2)


def test_the_time_limit_does_not_run_out_in_a_pause_and_counts_from_its_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time_ns=lambda: int(rig.now * 1e9))
    monkeypatch.setattr(registry, "time", clock)
    rig.plan = Plan(rules=replace(StageRules(), max_wait_s=100))
    rig.rollout = rig.another()
    paused(rig)
    rig.now += 1000
    rig.devices(12)
    assert rig.step() is None
    manual.resume(rig.registry, KEY)
    rig.now += 99
    rig.devices(12)
    assert rig.step() is None
    rig.now += 2
    rig.devices(12)
    held = unwrap(rig.step())
    assert held.kind == "held"
    assert "undecided after" in held.reason


def test_a_controller_that_decides_at_the_same_moment_reads_the_pause_first(
    rig: Rig, says: list[Choice]
) -> None:
    rig.devices(12)
    rig.candidate()
    rig.step()
    before = last(rig)
    manual.pause(rig.registry, KEY)
    says[0] = "go-on"
    with pytest.raises(registry.Stale):
        rig.rollout.step(before, rig.fleet, rig.windows)
    assert rig.step() is None
