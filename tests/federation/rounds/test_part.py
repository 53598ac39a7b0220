"""Rounds of a task that trains a part of its model: real trainers behind Flower's records, without
its processes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from edge_client.client_app import answer
from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, TRAIN
from edge_client.training import trainer_process
from federation.admission import Tensors, Update
from federation.bootstrap.replacement import import_candidate
from federation.evaluation.accuracy import HeldOut
from federation.registry.registry import HELD_OUT as HELD_OUT_FILE
from federation.registry.registry import Registry
from federation.rounds import checkpoint
from federation.rounds.privacy import Ledger, private
from federation.rounds.run import FederatedRun
from federation.server_app import FlowerFleet
from streams.contract.artifact import LEARNED, WEIGHTS, Artifact, pack
from streams.contract.errors import ProcessFailed
from streams.contract.task import Privacy, Task
from streams.contract.weights import delta, payload
from streams.contract.weights.part import SUFFIX
from streams.contract.work import OWN, PERSONAL, TrainerJob, WorkReply, WorkRequest
from streams.learning.onnx_model import OnnxModel
from tests.federation.rounds import test_resume
from tests.federation.rounds.test_run import FakeFleet, Rig, hostile, sound
from tests.rig.made_up.models import artifact
from tests.rig.unwrap import unwrap

HEAD = {"head.weight", "head.bias"}


def build_model() -> nn.Module:
    """75,000 parameters, a hundredth of them in the head."""
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv1d(2, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Conv1d(64, 128, 9, padding=4), nn.ReLU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(),
    )  # fmt: skip
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(256, 3))
    with torch.no_grad():
        next(model.parameters())[0] = -0.0
    return model


def training(task: Task, **settings: object) -> Task:
    return replace(task, training=replace(task.training, **settings))  # type: ignore[arg-type]


@pytest.fixture
def large(tiny: Task) -> Task:
    return replace(tiny, build_model=build_model)


class Grid:
    """Three devices with rows of their own, each of which works as soon as it is asked; `carried`
    are the bytes of the messages by their type, both ways."""

    def __init__(self, task: Task, base: Artifact, folder: Path) -> None:
        self.task, self._folder, self._base = task, folder, folder / "base.safetensors"
        folder.mkdir(parents=True)
        self._base.write_bytes(base.files[WEIGHTS])
        self._replies: dict[str, Message] = {}
        self.carried: Counter[str] = Counter()
        self.errors: list[str] = []
        for node in self.get_node_ids():
            noise = np.random.default_rng(node)
            samples = Samples(task, folder / f"{node}.samples")
            for i in range(120):
                label = np.array([i % 3], np.float32)
                segment = noise.normal(2.0 * label, 0.3, task.segment_shape).astype(np.float32)
                split = HELD_OUT if i % 4 == 3 else TRAIN
                samples.add(i, i, segment, np.zeros(3, np.float32), split, label)
            (folder / str(node)).mkdir()
            with self.at(node, "rows").open("wb") as file:
                samples.write_training_rows(file)

    def at(self, node: int, name: str) -> Path:
        return self._folder / str(node) / name

    def get_node_ids(self) -> list[int]:
        return [1, 2, 3]

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [self._asked(message) for message in messages]

    def pull_messages(self, waiting: list[str]) -> list[Message]:
        return [self._replies.pop(name) for name in waiting if name in self._replies]

    def _asked(self, sent: Message) -> str:
        node, kind = sent.metadata.dst_node_id, sent.metadata.message_type
        name = f"m{len(self.carried)}-{sum(self.carried.values())}-{node}"
        about = Metadata(7, name, 1, node, "", "1", 0.0, 60.0, kind)
        message = Message(content=sent.content, metadata=about)

        def work(request: WorkRequest, block: bytes) -> tuple[WorkReply, bytes]:
            names = {"samples": "rows", "stop": "stop", "own": OWN}
            paths = {field: str(self.at(node, each)) for field, each in names.items()}
            served = str(self._base) if request.part or request.op == "evaluate" else ""
            job = TrainerJob(device=f"d{node}", request=request, served=served, **paths)
            return trainer_process.work(self.task, job, block)

        context = Context(7, node, {"device": f"d{node}"}, RecordDict(), {})
        op = "train" if kind == "train" else "evaluate"
        reply = answer(message, context, op, f"d{node}", work)  # type: ignore[arg-type]
        if error := str(reply.content.config_records["device"]["error"]):
            self.errors.append(error)
        for content in (message.content, reply.content):
            self.carried[op] += recorddict_to_proto(content).ByteSize()
        self._replies[name] = reply
        return name


Go = Callable[[Task, str], tuple[Rig, FederatedRun, Grid]]


@pytest.fixture
def go(key: Ed25519PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Prepares a run of two rounds from a model that knows nothing."""
    for field in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, field, 1)

    def prepared(task: Task, name: str) -> tuple[Rig, FederatedRun, Grid]:
        registry = Registry(tmp_path / name, task.name, task.version, [key.public_key()])
        base = registry.add(artifact(key, build_model().eval(), task=task))
        registry.serve(base.model, key, "a test")
        rig = Rig(task, registry, key, tmp_path / f"{name}-runs", strategy=task.training.strategy)
        grid = Grid(task, base, tmp_path / f"{name}-devices")
        run = rig.run(FlowerFleet(grid), margin=0.1)  # type: ignore[arg-type]
        if (privacy := task.training.privacy) is not None:
            ledger = Ledger(tmp_path / name / "privacy.json")
            run = replace(run, aggregator=private(task.training.strategy, privacy, ledger))
        return rig, run, grid

    return prepared


def weights_of(artifact: Artifact) -> Tensors:
    return safetensors.numpy.load(artifact.files[WEIGHTS])


PARTS: dict[str, dict[str, object]] = {
    "a head": {"train_only": ("head",)},
    "factors": {"lora": {"body.3": 2, "head": 1}},
    "a head and factors": {"train_only": ("head",), "lora": {"body.0": 1}},
}
FACTOR = "body.3.weight_lora"


@pytest.mark.parametrize("part", PARTS)
def test_a_round_of_a_hundredth_carries_a_fiftieth_at_most(part: str, large: Task, go: Go) -> None:
    carried = {}
    for name, settings in (("all", {}), ("part", PARTS[part])):
        _, run, grid = go(training(large, **settings), name)
        run.run()
        assert grid.errors == []
        carried[name] = grid.carried
    for op in ("train", "evaluate"):
        assert 0 < carried["part"][op] <= 0.02 * carried["all"][op]


LOW: dict[str, object] = {"train_only": (), "lora": {"body": 9, "body.3": 4}}
CASES: dict[str, dict[str, object]] = {
    "as it is": {},
    "in float16": {"payload": "float16"},
    "a robust rule": {"strategy": "median"},
    "an optimizer": {"strategy": "fedadam"},
    "a layer of one's own": {"train_only": ("head", "body.3"), "shared": ("head",)},
    "shared alone": {"train_only": (), "shared": ("head",)},
    "factors": LOW,
    "factors in float16": {**LOW, "payload": "float16"},
    "factors, a robust rule": {**LOW, "strategy": "median"},
    "factors, an optimizer": {**LOW, "strategy": "fedadam"},
    "factors, a buffer": {**LOW, "strategy": "fedbuff"},
    "factors and a head": {"lora": {"body.3": 4}, "payload": "float16", "proximal": 0.1},
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_travel_is_the_bases_bit_for_bit(case: str, large: Task, go: Go) -> None:
    settings = {"train_only": ("head",), **CASES[case]}
    task = training(large, **settings)
    rig, run, grid = go(task, "a")
    base = unwrap(rig.registry.serving())
    verdict = run.run()
    assert verdict.promote, verdict.reason
    assert grid.errors == []
    candidate = unwrap(rig.registry.serving())
    before, after = weights_of(base), weights_of(candidate)
    if settings.get("payload") == "float16":
        before = {n: t.astype(after[n].dtype) for n, t in before.items()}
    sent = set() if settings.get("train_only") == () and "lora" in settings else set(HEAD)
    sent |= {FACTOR} if "lora" in settings else set()
    sent |= {"body.0.weight_lora"} if settings.get("lora") == LOW["lora"] else set()
    changed = {name.removesuffix(SUFFIX) for name in sent}
    assert {n for n in after if after[n].tobytes() != before[n].tobytes()} == changed
    assert set(unwrap(checkpoint.latest(rig.runs, "7")).weights) == sent
    OnnxModel(task, candidate)  # with its self-test
    own = grid.at(1, OWN)
    assert own.exists() == ("shared" in settings)
    if settings["train_only"] and own.exists():
        assert set(safetensors.numpy.load_file(own)) == {"body.3.weight", "body.3.bias"}


@pytest.mark.parametrize("part", PARTS)
def test_a_release_is_as_small_as_what_learned(
    part: str, large: Task, go: Go, key: Ed25519PrivateKey
) -> None:
    """A delta has the tensors that changed, of the others a compressed run of zeros; or factors."""
    rig, run, _ = go(training(large, **PARTS[part], payload="float16"), "a")
    base = unwrap(rig.registry.serving())
    assert run.run().promote
    candidate = unwrap(rig.registry.serving())
    whole = sum(tensor.size * 4 for tensor in weights_of(base).values())
    path = rig.registry.folder / "models" / f"{candidate.model}.twa"
    made = delta.make(path.read_bytes(), base.files)
    assert len(made) <= 0.02 * whole
    assert delta.apply(made, base.files, [key.public_key()]) == path.read_bytes()


def test_an_imported_version_has_no_factors_of_the_one_before(
    large: Task, go: Go, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    rig, run, _ = go(training(large, **LOW), "a")
    base = unwrap(rig.registry.serving())
    assert run.run().promote
    learned = unwrap(rig.registry.serving()).files
    (path := tmp_path / "w.safetensors").write_bytes(learned[WEIGHTS])
    labels = (np.arange(90, dtype=np.float32) % 3)[:, None]
    noise = np.random.default_rng(9).normal(0, 0.3, (90, *large.segment_shape))
    held_out = HeldOut((2 * labels[:, :, None] + noise).astype(np.float32), labels)
    rig.registry.store.write(HELD_OUT_FILE, held_out.encode())
    files = {LEARNED: learned[LEARNED], **base.files}
    about = base.manifest.replace(number=3, files=[])
    rig.registry.serve(rig.registry.add(pack(about, files, key)).model, key, "a test")
    verdict, model = import_candidate(run.task, rig.registry, key, path)
    assert verdict.promote, verdict.reason
    assert LEARNED not in rig.registry.load(unwrap(model)).files


def test_a_copy_of_ones_own_is_trained_by_factors_and_is_whole(large: Task, go: Go) -> None:
    task = training(large, **LOW, personal=True)
    rig, _, grid = go(task, "a")
    base = unwrap(rig.registry.serving())
    request = WorkRequest(
        op="train", run=PERSONAL, round=0, task=task.name, task_version=1, base=base.model,
        epochs=1, batch_size=32, learning_rate=0.05,
    )  # fmt: skip
    job = TrainerJob(device="d1", request=request, samples=str(grid.at(1, "rows")), stop="none")
    reply, block = trainer_process.work(task, job, base.files[WEIGHTS])
    assert reply.error is None
    before, after = weights_of(base), payload.unpack(block)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {"body.0.weight", "body.3.weight"}
    assert before.keys() == after.keys()


def test_a_device_whose_task_trains_another_part_says_so(large: Task, go: Go) -> None:
    for number, other in enumerate(({}, {"train_only": ("body",)}, LOW)):
        _, run, grid = go(training(large, train_only=("head",)), str(number))
        grid.task = training(large, **other)
        with pytest.raises(ProcessFailed, match=r"0 of 3 .* counts \(other-part 3\), also"):
            run.run()
        said = "other-part: train_only, lora and shared"
        assert all(error.startswith(said) for error in grid.errors)
        assert len(grid.errors) == 6  # each is asked twice


@pytest.mark.parametrize(
    ("settings", "sent", "numbers"),
    [({"train_only": ("head",)}, HEAD, 771), ({"lora": {"body.3": 4}}, {FACTOR}, 512)],
)
def test_privacy_clips_and_disturbs_what_travels(
    settings: dict[str, object], sent: set[str], numbers: int, large: Task, go: Go
) -> None:
    privacy = Privacy(clip=0.5, noise_multiplier=0.5)
    rig, run, grid = go(training(large, **settings, privacy=privacy), "a")
    run.run()
    assert grid.errors == []
    assert rig.kinds().count("admitted") == 6
    assert "refused" not in rig.kinds()
    rounds = [unwrap(found).metrics for found in rig.of("aggregated")]
    spread = 0.5 * 0.5 / 3 * np.sqrt(numbers)  # of the noise
    assert all(abs(one["norm"] - spread) < 0.6 for one in rounds)
    assert set(unwrap(checkpoint.latest(rig.runs, "7")).weights) == sent


# --- without trainers -----------------------------------------------------------------------------

LAST = {"4.weight", "4.bias"}  # of the tiny task's model


@pytest.fixture
def part(tiny: Task, registry: Registry, key: Ed25519PrivateKey, tmp_path: Path) -> test_resume.Rig:
    registry.store.remove("heldout.safetensors")  # random steps do the people held out no good
    return test_resume.Rig(training(tiny, train_only=("4",)), registry, key, tmp_path / "runs")


def test_an_update_has_the_names_that_were_sent(part: test_resume.Rig) -> None:
    def more(update: Update) -> Update:
        return replace(update, weights={**update.weights, "0.bias": np.zeros(8, np.float32)})

    def less(update: Update) -> Update:
        return replace(
            update, weights={"4.bias": update.weights["4.bias"]} if update.weights else {}
        )

    before = weights_of(part.served())
    fleet = FakeFleet([sound("a", 0.01), sound("b", 0.01), hostile("c", more), hostile("d", less)])
    assert part.run(fleet, rounds=1).run().promote
    assert {frozenset(weights) for _, weights in fleet.sent} == {frozenset(LAST)}
    reasons = {event.device: event.reason for event in part.of("refused")}
    assert reasons == {
        "c": "keys: tensors differ: 0.bias",
        "d": "keys: tensors differ: 4.weight",
    }
    after = weights_of(part.served())
    assert {n for n in after if after[n].tobytes() != before[n].tobytes()} == LAST


@pytest.mark.parametrize("settings", [{}, {"train_only": (), "lora": {"0": 2, "4": 2}}])
@pytest.mark.parametrize("point", ["round-step-3", "round-step-5", "round-step-6"])
def test_a_run_that_dies_is_gone_on_with_to_the_same_result(
    part: test_resume.Rig, point: str, settings: dict[str, object]
) -> None:
    part.task = training(part.task, **settings)
    first = part.served().model
    assert part.resumed("whole").run().promote
    undisturbed = part.served()
    part.forget(first)
    part.kill("r1", point)
    assert part.resumed("r2", "r1").run().promote
    test_resume.check(part, undisturbed)


def test_a_checkpoint_of_another_part_begins_anew(part: test_resume.Rig) -> None:
    part.kill("r1", "round-step-5")
    part.task = training(part.task, train_only=())
    assert part.resumed("r2", "r1").run().promote
    (event,) = [e for e in part.kafka.events if e.kind == "failed" and e.run == "r2"]
    assert "do not fit" in event.reason
