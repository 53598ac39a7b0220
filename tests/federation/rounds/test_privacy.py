"""Noise that is calibrated, an account that is kept, and a budget that ends a run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.admission import Round, Update, admit, digest
from federation.registry.registry import Registry
from federation.rounds import checkpoint
from federation.rounds.privacy import Ledger, Private, epsilon, private
from federation.rounds.settings import RUN_CONFIG
from federation.server_app import run_aggregator
from streams.contract.errors import ProcessFailed, TaskError, UsageError
from streams.contract.task import Privacy, Task, Training
from streams.learning.updates import clipped
from tests.federation.rounds.test_run import FakeFleet, Rig, rig, sound
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.unwrap import unwrap

__all__ = ["rig"]

PRIVACY = Privacy(clip=0.5, noise_multiplier=1.0)


def make(path: Path, privacy: Privacy = PRIVACY, strategy: str = "fedavg") -> Private:
    return private(strategy, privacy, Ledger(path / "privacy.json"))


def update(device: str, weights: dict[str, np.ndarray], samples: int = 50) -> Update:
    return Update(device, "tiny", 1, "1-a", samples, weights)


def test_the_step_is_the_mean_and_noise_of_the_size_that_was_said(tmp_path: Path) -> None:
    base = {"w": np.zeros(40_000), "bn.running_mean": np.zeros(3), "n": np.array(4)}
    found = []
    for count in (2, 8):
        moved = {"w": np.full(40_000, 0.001), "bn.running_mean": np.ones(3), "n": np.array(9)}
        updates = [update(f"d{i}", moved, samples=10 ** (i % 4)) for i in range(count)]
        step = make(tmp_path).aggregate(updates, base)
        found.append(step["w"])
        assert step["bn.running_mean"].tolist() == [0, 0, 0]
        assert step["n"] == 4
    for step, count in zip(found, (2, 8), strict=True):
        sigma = PRIVACY.noise_multiplier * PRIVACY.clip / count
        assert np.std(step) == pytest.approx(sigma, rel=0.03)
        assert np.mean(step) == pytest.approx(0.001, abs=5 * sigma / math.sqrt(len(step)))


def test_the_same_updates_get_the_same_noise_after_a_crash_and_others_get_other(
    tmp_path: Path,
) -> None:
    base = {"w": np.zeros(50)}
    first, again, other = (make(tmp_path) for _ in range(3))
    again.load(first.state())
    updates = [update("a", {"w": np.full(50, 0.01)})]
    step = first.aggregate(updates, base)["w"]
    np.testing.assert_array_equal(again.aggregate(updates, base)["w"], step)
    assert not np.isclose(other.aggregate(updates, base)["w"], step).any()
    moved = [update("a", {"w": np.full(50, 0.02)})]
    assert not np.isclose(again.aggregate(moved, base)["w"] - 0.01, step).any()
    with pytest.raises(ProcessFailed, match="not the state of a private fedavg"):
        first.load({"fedadam/t": np.array(1)})


def test_epsilon_is_what_opacus_and_the_gaussian_mechanism_say() -> None:
    assert epsilon({}, 1e-5) == 0.0
    assert epsilon({1.0: 10}, 1e-5) == pytest.approx(19.05, abs=0.1)
    # Mironov 2017: RDP of order a is a / (2 z^2) a round; no accountant may say less than the
    # analytic bound of Balle & Wang 2018 (arXiv 1805.06530), for z = 1 and 1e-5: 4.377
    assert 4.377 < epsilon({1.0: 1}, 1e-5) < 4.9
    assert epsilon({2.0: 4}, 1e-5) == pytest.approx(epsilon({1.0: 1}, 1e-5), abs=0.05)
    assert epsilon({1.0: 1, 2.0: 4}, 1e-5) == pytest.approx(epsilon({1.0: 2}, 1e-5), abs=0.05)


def test_what_is_spent_is_kept_over_runs_and_before_it_is_used(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "privacy.json")
    for _ in range(2):
        make(tmp_path).aggregate([update("a", {"w": np.ones(2)})], {"w": np.zeros(2)})
    assert ledger.spent() == {1.0: 2}
    with pytest.raises(ValueError, match="nothing to aggregate"):
        make(tmp_path).aggregate([], {"w": np.zeros(2)})
    assert ledger.spent() == {1.0: 3}
    (tmp_path / "privacy.json").write_bytes(b"{")
    with pytest.raises(UsageError, match=r"privacy\.json cannot be read, restore a backup"):
        make(tmp_path, replace(PRIVACY, epsilon=3.0)).exhausted()


def test_a_budget_allows_so_many_rounds_and_no_more(tmp_path: Path) -> None:
    two = epsilon({1.0: 2}, 1e-5)
    found = make(tmp_path, replace(PRIVACY, epsilon=two + 0.01))
    for _ in range(2):
        assert found.exhausted() is None
        found.aggregate([update("a", {"w": np.ones(2)})], {"w": np.zeros(2)})
    assert "another round would raise epsilon of the aggregate to" in (found.exhausted() or "")
    assert found.metrics()["epsilon"] == pytest.approx(two)


def test_an_update_that_was_not_cut_is_not_admitted() -> None:
    base = {"w": np.zeros(4, np.float32)}
    expected = Round("tiny", 1, "1-a", base, clip=0.5)
    long = {"w": np.full(4, 0.4, np.float32)}
    refusal = unwrap(admit(update("a", long), expected))
    assert refusal.reason == "norm"
    assert admit(update("a", clipped(long, base, 0.5)), expected) is None


norms = st.floats(0, 1e6)
values = st.floats(-1.0, 1.0, width=32)


@given(st.lists(values, min_size=4, max_size=4), st.lists(norms, max_size=9), st.booleans())
def test_in_a_private_run_no_other_devices_update_decides_whether_one_counts(
    moved: list[float], others: list[float], sent_before: bool
) -> None:
    """Else one device would change the sum by more than its own clip, which the accountant takes
    for the most that it can."""
    base = {"w": np.zeros(4, np.float32)}
    alone = Round("tiny", 1, "1-a", base, clip=0.5)
    found = update("a", {"w": np.array(moved, np.float32)})
    earlier = frozenset({digest(found.weights)}) if sent_before else frozenset()
    among = replace(alone, norms=others, earlier=earlier)
    assert admit(found, among) == admit(found, alone)


def of_task(rig: Rig, privacy: Privacy) -> None:
    rig.task = replace(rig.task, training=replace(rig.task.training, privacy=privacy))


def test_a_run_ends_its_rounds_when_the_budget_is_spent(rig: Rig, tmp_path: Path) -> None:
    two = epsilon({1.0: 2}, 1e-5) + 0.01
    privacy = Privacy(clip=50.0, noise_multiplier=1.0, epsilon=two)
    of_task(rig, privacy)
    fleet = FakeFleet([sound("a", 1e-5), sound("b", 1e-5)])
    run = rig.run(fleet, rounds=5)
    run = replace(run, aggregator=make(tmp_path, privacy))
    run.run()
    told = [e.metrics["epsilon"] for e in rig.kafka.events if e.kind == "aggregated"]
    assert [round(value, 3) for value in told] == [
        round(epsilon({1.0: n}, 1e-5), 3) for n in (1, 2)
    ]
    (why,) = [e.reason for e in rig.kafka.events if e.kind == "failed"]
    assert why.startswith("no more rounds: another round would raise epsilon of the aggregate to")
    with pytest.raises(
        ProcessFailed, match="no round: another round would raise epsilon of the aggregate"
    ):
        replace(rig.run(fleet, rounds=5), aggregator=make(tmp_path, privacy)).run()


def test_a_private_run_that_died_goes_on_to_the_same_weights(rig: Rig, tmp_path: Path) -> None:
    privacy = Privacy(clip=50.0, noise_multiplier=1e-6)
    of_task(rig, privacy)
    devices = [sound("a", 1e-3), sound("b", 2e-3)]
    aggregator = make(tmp_path, privacy)
    dies = replace(rig.run(FakeFleet([*devices]), 2), aggregator=aggregator)
    dies.failpoint = killed_at("round-step-3", 2)
    with pytest.raises(Killed):
        dies.run()
    before = unwrap(checkpoint.latest(rig.runs, "7"))
    other = make(tmp_path, privacy)
    whole = replace(rig.run(FakeFleet([*devices]), 2, resume="7"), aggregator=other)
    whole.run()
    after = unwrap(checkpoint.latest(rig.runs, "7"))
    assert after.about.round == 2
    np.testing.assert_array_equal(after.server["private/key"], before.server["private/key"])
    mode = next((rig.runs / "7").glob("round-*.safetensors")).stat().st_mode
    assert mode & 0o077 == 0


def test_a_task_is_private_with_a_mean_only(tiny: Task, registry: Registry) -> None:
    made = replace(tiny, training=replace(tiny.training, privacy=PRIVACY))
    found = run_aggregator(made, dict(RUN_CONFIG), registry.folder)
    assert (found.name, found.clip) == ("private fedavg", 0.5)
    with pytest.raises(UsageError, match="strategy krum cannot be private"):
        run_aggregator(made, {**RUN_CONFIG, "strategy": "krum"}, registry.folder)
    with pytest.raises(TaskError, match="must be above 0"):
        replace(tiny, training=Training(privacy=Privacy(1.0, 0.0)))
