"""Whole runs against a fake fleet: no Flower, no broker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from compose.reports.follower import Lag
from compose.reports.problems import Status
from compose.reports.status import print_status
from federation.admission import Tensors, Update
from federation.bootstrap.initial_model import prepare
from federation.evaluation.quantization import run_graph
from federation.evaluation.recent_windows import RecentWindows
from federation.registry import key_rotation
from federation.registry.registry import Registry
from federation.rounds import checkpoint, strategies
from federation.rounds.collector import Policy, Reply
from federation.rounds.event_log import EventLog
from federation.rounds.fleet_reports import FleetReports
from federation.rounds.participants import JOIN_S, Inviter
from federation.rounds.run import FederatedRun
from federation.rounds.settings import RunSettings
from streams.contract.artifact import DRIFT, GRAPH, PROBE, WEIGHTS, key_id
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.errors import ArtifactError, BrokerUnavailable, ProcessFailed, UsageError
from streams.contract.events.messages import Headers
from streams.contract.task import Device as DeviceOf
from streams.contract.task import Task
from streams.contract.topics import ROUNDS, topic_name
from streams.contract.weights import payload
from streams.contract.work import PART, Op, Work
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.federation.conftest import TINY
from tests.federation.rounds.test_fleet_reports import FakeFollower, state
from tests.rig.unwrap import unwrap

Sound = Callable[[Op, Work, Tensors], Update]
Device = Callable[[Op, Work, Tensors], Update | str]


class FakeKafka:
    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, bytes]] = []

    def put(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers | None = None,
        timeout_s: float = 10.0,
    ) -> int:
        self.messages.append((topic.rpartition(".")[2], key, value))
        return len(self.messages) - 1

    def close(self, timeout_s: float = 2.0) -> None:
        pass

    @property
    def events(self) -> list[RoundEvent]:
        return [RoundEvent.decode(value) for t, _, value in self.messages if t == ROUNDS]


@dataclass
class FakeFleet:
    devices: Sequence[Device]
    online_after: int = 0  # looks at nodes() before anybody is there
    sent: list[tuple[Op, Tensors]] = field(default_factory=list)
    _answers: list[Reply] = field(default_factory=list)

    def nodes(self) -> list[int]:
        self.online_after -= 1
        return [] if self.online_after >= 0 else list(range(len(self.devices)))

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        self.sent.append((op, weights))
        for node in nodes:
            found = self.devices[node](op, work, weights)
            answer = Reply(node, round=work.round, op=op)
            if isinstance(found, str):
                self._answers.append(replace(answer, error=found))
            else:
                self._answers.append(replace(answer, device=found.device, update=found))

    def receive(self) -> list[Reply]:
        found, self._answers = self._answers, []
        return found


def compared(n: int, base: int, gained: int, lost: int = 0) -> dict[str, float]:
    """A device's figures for the candidate beside the served version."""
    parts = {"evaluated": n, "correct": base + gained - lost, "base_correct": base}
    return {name: float(v) for name, v in {**parts, "gained": gained, "lost": lost}.items()}


def sound(name: str, step: float, gain: float = 0.1) -> Sound:
    """Moves all weights by `step`; finds the candidate better by `gain` than the base."""

    def answer(op: Op, work: Work, weights: Tensors) -> Update:
        metrics = {"correct": 50.0, "evaluated": 100.0}
        if op == "evaluate":
            metrics = compared(100, 50, round(100 * gain))
        moved = {key: value + np.float32(step) for key, value in weights.items()}
        weights = moved if op == "train" else {}
        return Update(name, work.task, work.task_version, work.base, 50, weights, metrics)

    return answer


def hostile(name: str, alter: Callable[[Update], Update]) -> Sound:
    def answer(op: Op, work: Work, weights: Tensors) -> Update:
        return alter(sound(name, 0.001)(op, work, weights))

    return answer


@dataclass
class Rig:
    task: Task
    registry: Registry
    key: Ed25519PrivateKey
    runs: Path
    kafka: FakeKafka = field(default_factory=FakeKafka)
    strategy: str = "fedavg"
    rollout: bool = False

    def run(self, fleet: FakeFleet, rounds: int = 2, **changes: object) -> FederatedRun:
        name = str(changes.get("run", "7"))
        journal = EventLog("tiny", name, self.runs / name / "rounds.jsonl", lambda: self.kafka)
        settings = RunSettings(name, rounds, 2, 5.0, 30.0, 1, 0.01, 0.01, 0, self.runs)
        settings = replace(settings, **changes)  # type: ignore[arg-type]
        times = iter(range(10_000))
        return FederatedRun(
            self.task,
            settings,
            self.registry,
            self.key,
            fleet,
            journal,
            strategies.make(self.strategy),
            clock=lambda: float(next(times)),
            sleep=lambda _s: None,
            rollout=self.rollout,
        )

    def kinds(self) -> list[str]:
        return [event.kind for event in self.kafka.events]

    def of(self, kind: str) -> list[RoundEvent]:
        return [event for event in self.kafka.events if event.kind == kind]

    def moved(self, before: Tensors, step: float, names: Sequence[str] = ()) -> None:
        """The run's last checkpoint has gone so far from the weights before."""
        found = unwrap(checkpoint.latest(self.runs, "7"))
        for name in names or before:
            np.testing.assert_allclose(found.weights[name], before[name] + step, atol=1e-6)


@pytest.fixture
def rig(tiny: Task, registry: Registry, key: Ed25519PrivateKey, tmp_path: Path) -> Rig:
    registry.store.remove("heldout.safetensors")  # random steps do the people held out no good
    return Rig(tiny, registry, key, tmp_path / "runs")


@pytest.fixture
def able(tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, first_models: Path) -> Rig:
    """A registry with its held-out people, and a first model that knows what it has been taught."""
    registry = Registry(tmp_path / "able", tiny.name, tiny.version, [key.public_key()])
    prepare(TINY, tiny, registry, key, first_models)
    return Rig(tiny, registry, key, tmp_path / "runs")


def test_what_devices_praise_and_harms_the_people_held_out_is_refused(able: Rig) -> None:
    """The last layer's bias grows until all is "slow"; the devices say that it is better."""

    def one_answer(name: str) -> Sound:
        def answer(op: Op, work: Work, weights: Tensors) -> Update:
            found = sound(name, 0.0)(op, work, weights)
            if op != "train":
                return found
            bias = weights["4.bias"] + np.array([15, 0, 0], np.float32)
            return replace(found, weights={**found.weights, "4.bias": bias})

        return answer

    (base,) = able.registry.models()
    verdict = able.run(FakeFleet([one_answer("a"), one_answer("b")]), rounds=1).run()
    assert not verdict.promote
    assert "on held-out devices" in verdict.reason
    assert "loses more than 0.010" in verdict.reason
    found = verdict.evidence
    assert found["devices"] > found["devices_base"]
    assert found["held_out"] < found["held_out_base"] - 0.1
    assert found["audit"] < found["audit_base"] - 0.1  # the other half of those people says so too
    assert found["audit_segments"] > 100
    assert able.kinds()[-2:] == ["rejected", "finished"]
    assert able.kafka.events[-2].metrics["audit"] == found["audit"]
    assert (able.registry.models(), able.registry.desired().candidate) == ([base], None)


def base_weights(registry: Registry) -> Tensors:
    serving = unwrap(registry.serving())
    return safetensors.numpy.load(serving.files[WEIGHTS])


def test_a_better_model_is_signed_kept_and_served(rig: Rig) -> None:
    before = base_weights(rig.registry)
    (base,) = rig.registry.models()
    verdict = rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.003)])).run()
    assert verdict.promote
    serving = unwrap(rig.registry.serving())
    m = serving.manifest
    for name in (GRAPH, DRIFT):  # what a version does not change, it hands on
        assert serving.files[name] == rig.registry.load(base).files[name]
    assert (m.number, m.base, m.run, m.round, m.admitted, m.refused) == (2, base, "7", 2, 4, 0)
    after = base_weights(rig.registry)
    for name in before:
        np.testing.assert_allclose(after[name], before[name] + 0.004, atol=1e-6)
    probes = [safetensors.numpy.load(a.files[PROBE]) for a in (rig.registry.load(base), serving)]
    np.testing.assert_array_equal(probes[0]["inputs"], probes[1]["inputs"])
    assert np.abs(probes[0]["outputs"] - probes[1]["outputs"]).max() > 1e-3
    expected = run_graph(serving.files[GRAPH], probes[1]["inputs"], after)
    np.testing.assert_array_equal(probes[1]["outputs"], expected)
    assert rig.kinds()[-3:] == ["evaluated", "promoted", "finished"]
    assert rig.of("promoted")[0].metrics == m.metrics


def told_of_both(name: str, whole: int, part: int, worse: tuple[int, int] = (0, 0)) -> Device:
    """A device that gains so many of 100 rows by what was learned and by a part of the way, and
    loses so many."""

    def answer(op: Op, work: Work, weights: Tensors) -> Update:
        found = sound(name, 0.004)(op, work, weights)
        if op == "train":
            return found
        halves = compared(100, 50, part, worse[1])
        metrics = {
            **compared(100, 50, whole, worse[0]),
            **{PART + figure: value for figure, value in halves.items()},
        }
        return replace(found, metrics=metrics)

    return answer


@pytest.mark.parametrize(
    ("devices", "way"),
    [
        ([(20, 10)] * 5, 1.0),  # all five gain more by all of it
        ([(20, 10)] * 4, 0.5),  # four prove nothing
        ([(20, 10)] * 6 + [(0, 0, (5, 0))], 0.5),  # it makes one worse, which half of it does not
        ([(20, 20)] * 6, 0.5),  # as good by either
    ],
)
def test_a_run_goes_half_of_the_way_unless_more_is_better_and_harms_nobody(
    rig: Rig, devices: list[tuple[int, int]], way: float
) -> None:
    rig.task = replace(rig.task, training=replace(rig.task.training, payload="float16"))
    before = payload.to_float32(base_weights(rig.registry))
    fleet = [told_of_both(f"d{at}", *each) for at, each in enumerate(devices)]
    verdict = rig.run(FakeFleet(fleet), rounds=1).run()
    assert verdict.promote
    assert verdict.evidence["step"] == way
    assert ("half of what was learned is applied, since " in verdict.reason) == (way == 0.5)
    assert verdict.reason.endswith(f"; {len(devices)} of {len(devices)} updates in 1 round")
    assert verdict.evidence["devices"] == pytest.approx(
        0.5 + sum(each[0] if way == 1 else each[1] for each in devices) / 100 / len(devices)
        - (0.0 if way < 1 else sum(each[2][0] for each in devices if len(each) > 2) / 100)
    )  # fmt: skip
    after = payload.to_float32(base_weights(rig.registry))
    for name in before:
        np.testing.assert_allclose(after[name], before[name] + way * 0.004, atol=1e-3)


def test_where_there_is_a_controller_a_better_model_is_a_candidate(rig: Rig) -> None:
    rig.rollout, (base,) = True, rig.registry.models()
    assert rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.003)])).run().promote
    standing = rig.registry.desired()
    assert standing.stable is not None
    assert standing.candidate is not None
    assert standing.stable.model == base
    assert standing.offered is None
    assert standing.candidate.model.startswith("2-")
    last = rig.registry.decisions()[-1]
    assert (last.kind, last.model, last.run) == ("candidate", standing.candidate.model, "7")
    assert last.evidence["devices"] > last.evidence["devices_base"]
    # one that comes later takes its place
    assert rig.run(FakeFleet([sound("a", 0.002), sound("b", 0.004)])).run().promote
    found = unwrap(rig.registry.desired().candidate)
    assert found.model.startswith("3-")


def test_a_rejection_tells_its_evidence(rig: Rig) -> None:
    """What one class loses is told by the devices, and is the reason."""

    def worse(name: str) -> Sound:
        def answer(op: Op, work: Work, weights: Tensors) -> Update:
            update = sound(name, 0.001)(op, work, weights)
            rows = [compared(70, 20, 40), compared(30, 30, 0, 10), compared(0, 0, 0)]
            false = [(0, 0), (0, 0), (50, 20)]  # no alarms of the second class before
            said = {
                f"class-{index}-{part}": value
                for index, (row, (before, after)) in enumerate(zip(rows, false, strict=True))
                for part, value in {**row, "base_false": before, "false": after}.items()
            }
            said |= compared(100, 50, 40, 10)
            return replace(update, metrics=said) if op == "evaluate" else update

        return answer

    grouped = [DeviceOf(name, "fleet", "north") for name in "abcdefgh"]
    rig.task = replace(rig.task, devices=lambda: grouped)
    verdict = rig.run(FakeFleet([worse(name) for name in "abcdefgh"])).run()
    title = (
        "recall of class middle on devices 1.000 → 0.667 loses more than 0.050; "
        "16 of 16 updates in 2 rounds"
    )
    assert (verdict.promote, verdict.reason) == (False, title)
    (told,) = rig.of("rejected")
    assert told.reason == title
    assert told.metrics == verdict.evidence
    assert told.metrics["devices/class middle/p"] == 2**-8
    assert told.metrics["devices/class middle"] == pytest.approx(-1 / 3)
    assert told.metrics["devices/group north"] == pytest.approx(0.3)


def test_a_candidate_that_recent_windows_show_to_be_worse_is_refused(rig: Rig) -> None:
    """By the teacher, which answers as the served version; not where true labels say that the
    teacher is wrong more often than the candidate."""
    serving = unwrap(rig.registry.serving())
    dice = np.random.default_rng(0)
    segments = dice.normal(0, 2, (200, *rig.task.segment_shape)).astype(np.float32)
    served = run_graph(serving.files[GRAPH], segments, base_weights(rig.registry))
    devices = np.array([f"d{n % 20}" for n in range(200)])
    right = rig.task.labels_from(served)
    labels = np.where(np.arange(200)[:, None] < 60, right, np.float32(np.nan))

    def turned(name: str) -> Sound:
        def answer(op: Op, work: Work, weights: Tensors) -> Update:
            update = sound(name, 0.001)(op, work, weights)
            return replace(update, weights={n: -w for n, w in weights.items()})

        return answer

    fleet = FakeFleet([turned("a"), turned("b")])
    run = rig.run(fleet, rounds=1)
    run.recent = lambda: RecentWindows(segments, served, labels, devices)
    verdict = run.run()
    assert not verdict.promote
    assert "on recent windows 1.000 → 0." in verdict.reason
    (told,) = rig.of("rejected")
    assert told.metrics["recent_segments"] == 200
    run = rig.run(fleet, rounds=1)
    wrong = (labels + 1) % len(rig.task.classes)
    run.recent = lambda: RecentWindows(segments, served, wrong, devices)
    verdict = run.run()
    assert verdict.promote
    assert "on recent windows by true labels 0.000 → 0." in verdict.reason


@pytest.mark.parametrize(
    ("alter", "slug"),
    [
        (lambda u: replace(u, samples=0), "samples"),
        (lambda u: replace(u, base="1-00000000"), "task"),
        (lambda u: replace(u, device="a"), "duplicate"),
        (lambda u: replace(u, weights={k: v * np.nan for k, v in u.weights.items()}), "not-finite"),
        (lambda u: replace(u, weights={k: v[None] for k, v in u.weights.items()}), "shape"),
        (lambda u: replace(u, weights={k: v + 9 for k, v in u.weights.items()}), "norm"),
    ],
)
def test_a_hostile_device_changes_nothing_but_its_own_count(
    rig: Rig, alter: Callable[[Update], Update], slug: str
) -> None:
    sound_devices = [sound(name, 0.001) for name in ("a", "b", "c", "d")]
    before = base_weights(rig.registry)
    rig.run(FakeFleet([*sound_devices, hostile("e", alter)]), rounds=1).run()
    refused = rig.of("refused")
    assert [e.reason.partition(":")[0] for e in refused] == [slug]
    rig.moved(before, 0.001)
    assert len(rig.of("admitted")) == 4


def refusals(rig: Rig) -> list[tuple[int, str | None, str]]:
    """(round, device, reason) of each refused event."""
    return [
        (e.round, e.device, e.reason.partition(":")[0])
        for e in rig.kafka.events
        if e.kind == "refused"
    ]


def test_a_node_refused_twice_gets_no_work_for_three_rounds(rig: Rig) -> None:
    asked: list[int] = []

    def greedy(op: Op, work: Work, weights: Tensors) -> Update:
        if op == "train":
            asked.append(work.round)
        return replace(sound("e", 0.002)(op, work, weights), samples=0)

    rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.003), greedy]), rounds=7).run()
    assert asked == [1, 2, 6, 7]
    out = [(number, "node 2", "sitting-out") for number in (3, 4, 5)]
    lies = [(number, "e", "samples") for number in (1, 2, 6, 7)]
    assert refusals(rig) == [*lies[:2], *out, *lies[2:]]
    events = rig.of("aggregated")
    told = [{k: v for k, v in e.metrics.items() if k.startswith("refused")} for e in events]
    assert told[1:3] == [{"refused_samples": 1.0}, {"refused_sitting-out": 1.0}]
    serving = unwrap(rig.registry.serving())
    assert serving.manifest.refused == 4  # updates, not rounds without one


def test_an_update_of_an_earlier_round_is_no_update_of_this_one(rig: Rig) -> None:
    heard: list[Tensors] = []

    def parrot(op: Op, work: Work, weights: Tensors) -> Update | str:
        """Listens to "a" in the first round and repeats it in the second."""
        if op == "train" and work.round == 1:
            answer = sound("a", 0.001)(op, work, weights)
            heard.append(dict(answer.weights))
            return "busy"
        answer = sound("e", 0.001)(op, work, weights)
        return replace(answer, weights=heard[0]) if op == "train" else answer

    rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.003), parrot])).run()
    assert refusals(rig) == [(2, "e", "replay")]


def test_two_devices_that_send_the_same_in_one_round_are_both_admitted(rig: Rig) -> None:
    rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001)]), rounds=1).run()
    assert refusals(rig) == []


def test_no_more_samples_are_believed_than_the_device_reported(rig: Rig) -> None:
    run = rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001), sound("c", 0.001)]), rounds=1)
    said = [state("a", 49), state("b", 50), state("c", 49, time_us=5)]
    kafka = FakeFollower([[], said])
    run.reports = FleetReports(lambda: kafka)
    run.run()
    assert refusals(rig) == [(1, "a", "samples")]
    assert kafka.closed


def greedy(name: str, step: float, samples: int = 2048) -> Sound:
    """Claims more samples than the others' 50."""

    def answer(op: Op, work: Work, weights: Tensors) -> Update:
        return replace(sound(name, step)(op, work, weights), samples=samples)

    return answer


def test_a_claim_counts_up_to_twice_the_median_and_the_journal_says_so(rig: Rig) -> None:
    before = base_weights(rig.registry)
    fleet = FakeFleet([*(sound(name, 0.001) for name in ("a", "b", "c")), greedy("z", 0.003)])
    rig.run(fleet, rounds=1).run()
    admitted = rig.of("admitted")
    said = {e.device: (e.samples, e.metrics.get("claimed")) for e in admitted}
    assert said == {"a": (50, None), "b": (50, None), "c": (50, None), "z": (100, 2048.0)}
    (aggregated,) = rig.of("aggregated")
    assert (aggregated.samples, aggregated.metrics["claims_capped"]) == (250, 1.0)
    rig.moved(before, (3 * 50 * 0.001 + 100 * 0.003) / 250)


def test_a_rule_with_too_few_updates_for_its_promise_keeps_the_weights(rig: Rig) -> None:
    rig.strategy = "krum"
    liars = [hostile(name, lambda u: replace(u, samples=0)) for name in ("d", "e")]
    fleet = FakeFleet([*(sound(name, 0.001) for name in ("a", "b", "c")), *liars])
    with pytest.raises(ProcessFailed, match="no round had the 5 updates that krum needs"):
        rig.run(fleet, rounds=1).run()
    failed = [e.reason for e in rig.of("failed")]
    assert failed == ["3 updates were admitted, krum needs 5"]


def test_a_rule_waits_for_as_many_devices_as_it_needs(rig: Rig) -> None:
    rig.strategy = "krum"
    with pytest.raises(ProcessFailed, match=r"2 devices are online, 5 are needed.*than krum"):
        rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001)])).run()


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_a_run_with_a_robust_rule_goes_where_the_honest_go(rig: Rig, strategy: str) -> None:
    before, rig.strategy = base_weights(rig.registry), strategy
    back = hostile(
        "z",
        lambda u: replace(
            u, weights={k: 2 * before[k] - v for k, v in u.weights.items()}, samples=2048
        ),
    )
    fleet = FakeFleet([*(sound(name, 0.001) for name in ("a", "b", "c", "d")), back])
    rig.run(fleet, rounds=1).run()
    rig.moved(before, 0.001)


def test_a_refused_device_has_no_say_at_the_gate(rig: Rig) -> None:
    lies = compared(2000, 2000, 0, 2000)
    liar = hostile("e", lambda u: replace(u, samples=0, metrics=lies))
    verdict = rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001), liar])).run()
    assert verdict.promote


def test_whoever_takes_another_devices_name_does_not_silence_it(rig: Rig) -> None:
    thief = hostile("e", lambda u: replace(u, device="a", metrics=compared(9, 9, 0, 9)))
    assert rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001), thief])).run().promote
    last = rig.of("evaluated")[-1]
    assert last.metrics["devices_segments"] == 200


def test_who_has_not_trained_has_a_say_unless_two_give_one_name(rig: Rig) -> None:
    def late(name: str) -> Device:
        def answer(op: Op, work: Work, weights: Tensors) -> Update | str:
            return "busy" if op == "train" else sound(name, 0.0)(op, work, weights)

        return answer

    others = [late("c"), late("x"), late("x"), late("no device")]
    four = [sound(name, 0.001) for name in "abde"]
    rig.run(FakeFleet([*four, *others])).run()
    last = rig.of("evaluated")[-1]
    assert last.metrics["devices_segments"] == 500


def test_a_failure_is_told_and_the_rest_is_averaged(rig: Rig) -> None:
    fleet = FakeFleet([sound("a", 0.001), sound("b", 0.001), lambda *_: "no reply within 30 s"])
    assert rig.run(fleet).run().promote
    failed = rig.of("failed")
    assert {(e.device, e.reason) for e in failed} == {("node 2", "no reply within 30 s")}


def failing(name: str, times: int, why: str = "busy") -> Device:
    """Fails so many times, then trains."""
    left = [times]

    def answer(op: Op, work: Work, weights: Tensors) -> Update | str:
        if op == "train" and left[0] > 0:
            left[0] -= 1
            return why
        return sound(name, 0.001)(op, work, weights)

    return answer


def test_devices_that_sent_no_update_are_asked_again_where_fewer_than_half_did(rig: Rig) -> None:
    fleet = FakeFleet([sound("a", 0.001), *(failing(name, 1) for name in "bcd")])
    verdict = rig.run(fleet, rounds=1).run()
    assert verdict.promote
    assert verdict.reason.endswith("4 of 4 updates in 1 round")
    asked = [e.metrics["nodes"] for e in rig.of("started")]
    assert asked == [4.0, 3.0]
    (why,) = [e.reason for e in rig.kafka.events if e.kind == "failed" and e.device is None]
    assert why == "1 of 4 asked devices sent an update: the others are asked again"


@pytest.mark.parametrize("updates", [0, 1])
def test_an_aggregate_of_fewer_than_half_of_the_asked_devices_is_no_candidate(
    rig: Rig, updates: int
) -> None:
    devices = [sound(name, 0.001) for name in "abcd"[:updates]]
    fleet = FakeFleet([*devices, *(failing(name, 9) for name in "wxyz"[: 4 - updates])])
    with pytest.raises(ProcessFailed, match=f"{updates} of 4 asked devices sent an update"):
        rig.run(fleet).run()
    assert rig.kafka.events[-1].kind == "finished"
    assert rig.kafka.events[-1].reason.startswith(f"failed: round 1: {updates} of 4 asked")
    assert not rig.of("aggregated")


def test_a_failed_run_says_why_most_updates_do_not_count(rig: Rig) -> None:
    few = "too-few-samples: 28 samples, 32 are needed"
    empty = hostile("d", lambda update: replace(update, samples=0))
    again = failing("e", 1, few)  # asked again it trains
    fleet = FakeFleet([failing("a", 9, few), failing("b", 9, few), failing("c", 9), empty, again])
    with pytest.raises(ProcessFailed):
        rig.run(fleet).run()
    reason = rig.kafka.events[-1].reason
    said = (
        "1 of 5 asked devices sent an update that counts (too-few-samples 2 for want of true "
        "labels, busy 1, samples 1)"
    )
    assert said in reason


@pytest.mark.parametrize("in_round", [1, 2])
def test_a_run_whose_key_is_revoked_meanwhile_ends_and_says_so(
    rig: Rig, in_round: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In its events, its log, `status` and `timeline`; no device trains for nothing after it."""
    new, old, rig.rollout = Ed25519PrivateKey.generate(), rig.key, True

    def revoking(op: Op, work: Work, weights: Tensors) -> Update | str:
        if work.round == in_round:
            key_rotation.trust(rig.registry, old, new.public_key())
            key_rotation.hand_over(rig.registry, new)
            key_rotation.revoke(rig.registry, new, key_id(old.public_key()))
        return sound("a", 0.001)(op, work, weights)

    fleet = FakeFleet([revoking, sound("b", 0.003)])
    with caplog.at_level("INFO"), pytest.raises(ProcessFailed, match="was revoked meanwhile"):
        rig.run(fleet).run()
    assert [op for op, _ in fleet.sent] == ["train"] * in_round
    last = rig.kafka.events[-1]
    said = f"failed: key {key_id(old.public_key())}, with which this run signs, was revoked"
    assert last.kind == "finished"
    assert last.reason.startswith(said)
    assert said in caplog.text
    assert rig.registry.desired().candidate is None
    view = FleetView("tiny")
    for at, event in enumerate(rig.kafka.events):
        view.absorb(Received(topic_name("tiny", ROUNDS), 0, at, b"7", event.encode(), []))
    line = "7 ended without a candidate"
    console = Console(record=True, width=400, file=StringIO())
    print_status(Status(view, Lag(), 0.0), console, as_json=False)
    assert f"Run {line}. {said}" in console.export_text()
    assert any(f"run {line}: {said}" in news for news in view.news)
    assert any(said in entry.reason for entry in view.timeline.entries)


def test_it_waits_for_enough_devices_but_not_for_ever(rig: Rig) -> None:
    assert rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001)], online_after=2)).run().promote
    with pytest.raises(ProcessFailed, match="0 devices are online, 2 are needed"):
        rig.run(FakeFleet([], online_after=10_000)).run()


def test_a_run_without_devices_says_that_its_broker_does_not_answer(rig: Rig) -> None:
    """It can invite nobody: more devices would not help."""

    def away() -> FakeFollower:
        raise BrokerUnavailable("no Kafka broker answers at h:1")

    run = rig.run(FakeFleet([], online_after=10_000))
    run.reports = FleetReports(away)
    with pytest.raises(ProcessFailed, match=r"2 are needed: no Kafka broker answers at h:1$"):
        run.run()


def test_a_registry_that_serves_nothing_or_damage_stops_the_run(rig: Rig) -> None:
    (model,) = rig.registry.models()
    (rig.registry.folder / "models" / f"{model}.twa").write_bytes(b"TWARTF01")
    with pytest.raises(ArtifactError):
        rig.run(FakeFleet([sound("a", 0.001), sound("b", 0.001)])).run()
    next((rig.registry.folder / "history").iterdir()).unlink()
    with pytest.raises(UsageError, match="serves no model"):
        rig.run(FakeFleet([])).run()


class RestartingFleet(FakeFleet):
    """From the third round on its last device is another node, and the one before is offline from
    the fourth on."""

    def nodes(self) -> list[int]:
        plain, last = super().nodes(), len(self.devices) - 1
        started = sum(op == "train" for op, _ in self.sent)
        if started < 2:
            return plain
        return [*(plain if started == 2 else plain[:-1]), last + 100]

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        last = len(self.devices) - 1
        alive = [n for n in nodes if n != last or work.round < 3]
        super().send(op, [n % 100 for n in alive], work, weights, ttl_s)
        if work.round >= 3:
            self._answers = [
                replace(a, node=last + 100) if a.node == last else a for a in self._answers
            ]


def test_a_node_that_comes_back_as_another_has_its_name_again_once_the_old_one_is_gone(
    rig: Rig,
) -> None:
    devices = [sound("a", 0.001), sound("b", 0.002), sound("c", 0.003)]
    rig.run(RestartingFleet(devices), rounds=4, round_deadline_s=10_000.0).run()
    admitted = [(e.round, e.device) for e in rig.of("admitted")]
    assert [number for number, device in admitted if device == "c"] == [1, 2, 4]
    assert refusals(rig) == [(3, "c", "name")]


class SlowFleet(FakeFleet):
    """The last node's answer to the work of round 1 comes in round `until` only."""

    def __init__(self, devices: Sequence[Device], until: int) -> None:
        super().__init__(devices)
        self.until, self.held, self.now = until, [], 0  # type: ignore[var-annotated]

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        super().send(op, nodes, work, weights, ttl_s)
        self.now = work.round
        late = [a for a in self._answers if a.node == len(self.devices) - 1 and a.round == 1]
        if op == "train" and late:
            self.held += late
            self._answers = [answer for answer in self._answers if answer not in late]
        if self.now >= self.until:
            self._answers, self.held = [*self.held, *self._answers], []


@pytest.mark.parametrize(("until", "stale"), [(2, None), (4, None), (6, "stale"), (9, None)])
def test_a_late_update_counts_shortened_or_is_refused_as_stale(
    rig: Rig, until: int, stale: str | None
) -> None:
    devices = [sound("a", 0.001), sound("b", 0.001), sound("c", 0.003)]
    before = base_weights(rig.registry)
    run = rig.run(SlowFleet(devices, until), rounds=7, round_deadline_s=10_000.0)
    run = replace(run, policy=Policy(max_staleness=4))
    run.run()
    admitted = [e for e in rig.kafka.events if e.kind == "admitted" and e.metrics.get("staleness")]
    failed = rig.of("failed")
    assert [e.round for e in failed] == [1]
    if until == 2:
        assert [(e.round, e.device, e.metrics["staleness"]) for e in admitted] == [(2, "c", 1.0)]
        # rounds of a, b: 0.001; the second has c's 0.003 / sqrt(2) too; then c trains as the others
        second = (0.001 + 0.001 + 0.003 / np.sqrt(2)) / 3
        total = 0.001 + second + 5 * 0.005 / 3
        rig.moved(before, total, ["4.bias"])
    else:
        assert [(e.round, e.metrics["staleness"]) for e in admitted] == (
            [(4, 3.0)] if until == 4 else []
        )
    assert [slug for _, _, slug in refusals(rig)] == ([stale] if stale else [])


class SilentOnce(FakeFleet):
    """Its last device says nothing to the work of round 1."""

    def receive(self) -> list[Reply]:
        last = len(self.devices) - 1
        return [a for a in super().receive() if (a.node, a.round, a.op) != (last, 1, "train")]


def test_who_is_at_work_is_waited_for_where_the_minimum_needs_it(rig: Rig) -> None:
    """Longer than for devices that are not online: its work's time is over some time."""
    devices = [sound("a", 0.001), sound("b", 0.002), sound("c", 0.003)]
    run = rig.run(SilentOnce(devices), minimum_nodes=3, node_wait_s=5.0, round_deadline_s=60.0)
    run.run()
    admitted = [(e.round, e.device) for e in rig.of("admitted")]
    assert admitted == [(1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "c")]
    assert [(e.round, e.device) for e in rig.of("failed")] == [(1, "node 2")]


def test_devices_that_say_they_cannot_are_not_asked(rig: Rig) -> None:
    fleet = FakeFleet([sound("a", 0.001), sound("b", 0.001), sound("c", 0.001)])
    run = rig.run(fleet, rounds=1)
    said = [
        node_state("a", 0, samples=3),
        node_state("b", 1),
        node_state("c", 2),
    ]
    kafka = FakeFollower([[], said])
    run.reports = FleetReports(lambda: kafka)
    run.run()
    admitted = [e.device for e in rig.of("admitted")]
    assert admitted == ["b", "c"]
    (started,) = rig.of("started")
    assert started.metrics == {"nodes": 2.0, "online": 3.0}


def node_state(device: str, node: int, samples: int = 500) -> Received:
    said = DeviceState.decode(state(device, samples).value)
    value = said.replace(node=node).encode()
    return Received("t", 0, 0, device.encode(), value, [])


class HushedLast(FakeFleet):
    """Its last device, and its state on `fleet`, fall silent with the first work; the others' come
    every second. Its clock is that of the run."""

    def __init__(self, devices: Sequence[Device], back_s: float = 1e9) -> None:
        super().__init__(devices)
        self.now, self.back_s, self.said_at, self.asked = 0.0, back_s, -1.0, list[list[int]]()
        self.reports = FleetReports(lambda: self, clock=lambda: self.now)

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        super().send(op, nodes, work, weights, ttl_s)
        self.asked.append(list(nodes))
        if self.now < self.back_s:
            self._answers = [a for a in self._answers if a.node != len(self.devices) - 1]

    def poll(self, timeout_s: float = 0.5) -> list[Received]:
        if self.now < self.said_at + 1.0:
            return []
        self.said_at = self.now
        silent = 2.5 < self.now < self.back_s
        names = "abcdefgh"[: len(self.devices) - silent]
        return [node_state(name, node) for node, name in enumerate(names)]

    def close(self) -> None:
        pass

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def hushed(rig: Rig, fleet: HushedLast, **changes: object) -> FederatedRun:
    run = rig.run(fleet, **changes)  # type: ignore[arg-type]
    return replace(run, reports=fleet.reports, clock=lambda: fleet.now, sleep=fleet.sleep)


def test_a_device_that_falls_silent_is_not_waited_for_nor_asked_again(rig: Rig) -> None:
    fleet = HushedLast([sound(name, 0.001) for name in "abcd"])
    hushed(rig, fleet, rounds=3, minimum_nodes=4).run()
    assert fleet.asked[:3] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert fleet.now < 15.0  # its work's time is 35 s, and the deadline 30 s
    assert [(e.round, e.device) for e in rig.of("failed")] == [(1, "node 3")]
    (why,) = [e.reason for e in rig.of("failed")]
    assert why.startswith("silent: nothing on `fleet` for ")
    aggregated = [e.metrics.get("silent") for e in rig.of("aggregated")]
    assert aggregated == [1.0, None, None]


def test_an_invited_device_that_does_not_join_is_waited_for_once(rig: Rig) -> None:
    told = [state("a", 100, node=0), state("b", 100, node=1), state("c", 100)]
    run = rig.run(FakeFleet([sound("a", 0.01), sound("b", 0.01)]))
    inviter = Inviter(rig.task, "7", "127.0.0.1:9092", rig.key, lambda: rig.kafka)
    run = replace(run, reports=FleetReports(lambda: FakeFollower([told])), inviter=inviter)
    run.run()
    invited = rig.of("invited")
    assert [event.reason for event in invited] == ["2 of 3 invited devices joined; not yet: c"] * 2
    took = [e.metrics["seconds"] for e in rig.of("aggregated")]
    assert took[0] > JOIN_S > took[1]
