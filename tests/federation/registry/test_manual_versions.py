"""Versions that a person serves, takes back and removes."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.registry import key_rotation, manual
from federation.registry.catalog import verify, versions
from federation.registry.registry import NOT_OFFERED, Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import Ref
from streams.contract.errors import UsageError
from tests.rig.made_up.registries import NEW, OLD, STRANGER, model, offer, registry_in, serve, wait


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_in(tmp_path / "registry")


@pytest.fixture
def three(registry: Registry) -> list[Ref]:
    """Three versions, each made of the one before; the second is stable, the third on offer."""
    first = model(registry, 1)
    serve(registry, first)
    second = model(registry, 2, base=first.model)
    serve(registry, second)
    third = model(registry, 3, base=second.model)
    offer(registry, third)
    return [first, second, third]


def test_a_version_on_offer_is_taken_back_once(registry: Registry, three: list[Ref]) -> None:
    outcome = manual.roll_back(registry, OLD, reason="answers are late")
    assert outcome.made is not None
    decision = outcome.made.decision
    assert (decision.kind, decision.model) == ("rolled-back", three[2].model)
    assert decision.reason == "manual: answers are late"
    standing = registry.desired()
    assert (standing.stable, standing.offered, standing.share) == (three[1], None, 0.0)
    assert list(standing.withdrawn) == [three[2].model]
    again = manual.roll_back(registry, OLD)
    assert again.made is None
    assert "nothing to do; --to MODEL goes further back" in again.text


def test_with_none_on_offer_the_version_before_is_served(
    registry: Registry, three: list[Ref]
) -> None:
    """Also where the last one was taken back by the windows, and not by hand."""
    after = registry.desired().without(three[2].model, "worse").replace(**NOT_OFFERED)
    registry.decide(
        OLD, "rolled-back", after, registry.last(), model=three[2].model, reason="worse"
    )
    outcome = manual.roll_back(registry, OLD)
    assert outcome.made is not None
    assert (outcome.made.decision.kind, outcome.made.decision.model) == (
        "rolled-back", three[1].model,
    )  # fmt: skip
    standing = registry.desired()
    assert standing.stable == three[0]
    assert set(standing.withdrawn) == {three[1].model, three[2].model}
    assert manual.roll_back(registry, OLD).made is None
    assert registry.desired() == standing


def test_nothing_before_the_first_version(registry: Registry) -> None:
    with pytest.raises(UsageError, match="tidewheel prepare"):
        manual.roll_back(registry, OLD)
    serve(registry, model(registry, 1))
    with pytest.raises(
        UsageError,
        match="no earlier version can be served again: each is",
    ):
        manual.roll_back(registry, OLD)


def test_promoting_takes_another_offer_back_and_leaves_who_waits(
    registry: Registry, three: list[Ref]
) -> None:
    waits = model(registry, 4, base=three[1].model)
    wait(registry, waits)
    manual.promote(registry, OLD, three[0].model)
    standing = registry.desired()
    assert (standing.stable, standing.offered, standing.stage) == (three[0], None, 0)
    assert list(standing.withdrawn) == [three[2].model]
    assert standing.candidate == waits
    manual.promote(registry, OLD, waits.model)
    assert registry.desired().candidate is None


def test_what_devices_would_refuse_is_not_served(registry: Registry, three: list[Ref]) -> None:
    with pytest.raises(UsageError, match="models list"):
        manual.promote(registry, OLD, "9-00000000")
    with pytest.raises(UsageError, match="devices do not trust key"):
        manual.promote(registry, STRANGER, three[0].model)
    key_rotation.trust(registry, OLD, NEW.public_key())
    key_rotation.hand_over(registry, NEW)
    key_rotation.revoke(registry, NEW, key_id(OLD.public_key()))
    for decide in (manual.promote, manual.roll_back):
        with pytest.raises(UsageError, match="is not trusted any more"):
            decide(registry, NEW, three[0].model)
    with pytest.raises(UsageError, match="signed by a revoked key"):  # all before
        manual.roll_back(registry, NEW)
    assert registry.desired().stable != three[0]


@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["add", "serve", "offer", "wait", "back"]), st.integers(0, 9)),
        max_size=14,
    ),
    keep=st.integers(1, 4),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pruning_never_removes_what_is_needed(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]], keep: int
) -> None:
    registry = registry_in(tmp_path_factory.mktemp("registry"))
    refs = [model(registry, 1)]
    serve(registry, refs[0])
    for move, pick in moves:
        chosen = refs[pick % len(refs)]
        match move:
            case "add":
                refs.append(model(registry, len(refs) + 1, base=chosen.model))
            case "serve":
                manual.promote(registry, OLD, chosen.model)
            case "offer":
                offer(registry, chosen)
            case "wait":
                wait(registry, chosen)
            case "back":
                with suppress(UsageError):  # there is none before
                    manual.roll_back(registry, OLD)
    standing, newest = registry.desired(), registry.models()[-keep:]
    bases = {m: registry.load(m).manifest.base for m in registry.models()}
    back = manual.before_stable(registry, registry.decisions())
    manual.prune(registry, keep)
    kept = set(registry.models())
    for ref in (standing.stable, standing.offered, standing.candidate, back):
        assert ref is None or ref.model in kept
        if ref is not None and ref != back:
            assert bases[ref.model] is None or bases[ref.model] in kept
    assert set(newest) <= kept
    assert verify(registry).problems == []


def test_versions_say_what_holds_of_them(registry: Registry, three: list[Ref]) -> None:
    waits = model(registry, 4, base=three[1].model, metrics={"held_out": 0.5}, run="r", round=2)
    wait(registry, waits)
    after = registry.desired().without(three[0].model, "too late")
    registry.decide(OLD, "rolled-back", after, registry.last(), model=three[0].model)
    (registry.folder / "models" / f"{three[1].model}.twa").write_bytes(b"broken")
    found = versions(registry)
    assert [v.holds for v in found] == [
        "withdrawn: too late", "stable", "offered in stage 1", "candidate",
    ]  # fmt: skip
    assert [v.problem is not None for v in found] == [False, True, False, False]
    assert (found[3].held_out, found[3].run, found[3].round) == (0.5, "r", 2)
    assert found[3].key == key_id(OLD.public_key())
