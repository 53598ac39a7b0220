"""A pause is a decision like the others: signed, in the chain, and accepted by every device."""

from pathlib import Path

import pytest

from federation.registry import key_rotation, manual
from federation.registry.catalog import verify, versions
from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import Ref
from streams.runtime.trust import Acceptance
from tests.rig.made_up.registries import NEW, OLD, model, offer, registry_in, serve, wait
from tests.rig.made_up.tiny_task import task
from tests.rig.unwrap import unwrap


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_in(tmp_path / "registry")


@pytest.fixture
def offered(registry: Registry) -> Ref:
    serve(registry, model(registry, 1))
    found = model(registry, 2)
    offer(registry, found)
    return found


def test_a_pause_says_who_when_and_why_and_moves_no_device(
    registry: Registry, offered: Ref
) -> None:
    before = registry.desired()
    asked: list[str] = []
    outcome = manual.pause(registry, OLD, "look first", asked.append)
    assert outcome.made is not None
    decision = outcome.made.decision
    assert (decision.kind, decision.model) == ("held", offered.model)
    assert decision.reason == "manual: look first"
    paused = unwrap(decision.standing.paused)
    assert (paused.reason, paused.key) == (decision.reason, key_id(OLD.public_key()))
    assert abs(paused.time_us - decision.time_us) < 60_000_000
    assert decision.standing.replace(paused=None) == before
    where = f"{offered.model} stays at stage 1, until it is resumed"
    assert outcome.text == where
    assert asked == [
        f"{where}: no device changes, no run starts, and it still goes back if it is worse"
    ]
    assert [v.holds for v in versions(registry)] == ["stable", "offered in stage 1, paused"]


def test_there_is_nothing_to_pause_without_a_rollout(registry: Registry) -> None:
    serve(registry, model(registry, 1))
    assert manual.pause(registry, OLD).text == "no version is in a rollout: nothing to pause"
    waits = model(registry, 2)
    wait(registry, waits)
    text = f"{waits.model} waits for its first stage: nothing to pause"
    assert manual.pause(registry, OLD).text == text


@pytest.mark.parametrize("by", ["rollback", "promotion", "another promotion"])
def test_a_pause_ends_with_its_rollout(registry: Registry, offered: Ref, by: str) -> None:
    manual.pause(registry, OLD)
    if by == "rollback":
        manual.roll_back(registry, OLD)
    else:
        manual.promote(registry, OLD, registry.models()[1 if by == "promotion" else 0])
    assert registry.desired().paused is None
    assert manual.resume(registry, OLD).made is None


def test_decisions_about_other_things_carry_it_on(registry: Registry, offered: Ref) -> None:
    manual.pause(registry, OLD, "look first")
    key_rotation.trust(registry, OLD, NEW.public_key())
    key_rotation.hand_over(registry, NEW)
    wait(registry, model(registry, 3), NEW)
    paused = unwrap(registry.desired().paused)
    assert paused.reason == "manual: look first"
    assert manual.resume(registry, NEW).made is not None
    assert verify(registry).problems == []


def test_a_device_accepts_a_chain_with_a_pause_and_serves_what_it_served(
    registry: Registry, offered: Ref, tmp_path: Path
) -> None:
    manual.pause(registry, OLD)
    manual.resume(registry, OLD)
    history = registry.history()
    device = Acceptance(tmp_path, task, [OLD.public_key()])
    names = [f"d{n}" for n in range(200)]
    standings = [device.accept(release).standing for release in history]
    targets = [{name: each.target("tiny", name) for name in names} for each in standings]
    assert targets[1] == targets[2] == targets[3]
    assert set(targets[2].values()) == {offered, registry.desired().stable}
    late = Acceptance(None, task, [OLD.public_key()])  # it was away: the pause is all it reads
    assert late.accept(history[2]).standing.offered == offered
