import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap import initial_model
from federation.bootstrap.dataset import Segments, make_reference, segments_of_device
from federation.bootstrap.first_models import steps_said
from federation.bootstrap.initial_model import prepare
from federation.evaluation.accuracy import HeldOut, score
from federation.evaluation.quantization import run_graph
from federation.registry.registry import HELD_OUT, Registry
from streams.contract.artifact import DRIFT, GRAPH, PROBE, WEIGHTS
from streams.contract.errors import TaskError
from streams.contract.task import Reading, Segment, Task
from streams.learning import learning
from streams.learning.drift_reference import EFFECT, Reference
from tests.federation.conftest import TINY
from tests.rig.made_up.payments_task import task as payments
from tests.rig.unwrap import unwrap


@pytest.fixture
def empty(tmp_path: Path, tiny: Task, key: Ed25519PrivateKey) -> Registry:
    return Registry(tmp_path / "fresh", tiny.name, tiny.version, [key.public_key()])


def test_it_makes_both_models_once(
    tiny: Task, key: Ed25519PrivateKey, empty: Registry, tmp_path: Path
) -> None:
    cache, told = tmp_path / "cache", []
    report = unwrap(prepare(TINY, tiny, empty, key, cache, told.append))
    assert not report.cached
    assert "training the teacher" in told
    assert "reading the recordings of the role 'held-out': held-0, held-1, held-2" in told
    assert "reading the recordings of the role 'fleet', 6 devices" in told
    assert report.teacher_fleet > 0.9
    assert report.warning == ""
    serving = unwrap(empty.serving())
    assert (serving.model, serving.manifest.number) == (report.model, 1)

    held = HeldOut.decode(empty.central(HELD_OUT), tiny)
    weights = safetensors.numpy.load(serving.files[WEIGHTS])
    found = score(tiny, run_graph(serving.files[GRAPH], held.segments, weights), held.labels)
    assert found.value == pytest.approx(report.model_held_out, abs=1e-3)
    parts = dict(zip(("held_out", "audit"), held.audited(tiny), strict=True))
    for name, part in parts.items():  # as a run's version is measured
        outputs = run_graph(serving.files[GRAPH], part.segments, weights)
        value = score(tiny, outputs, part.labels).value
        assert serving.manifest.metrics[name] == pytest.approx(value, abs=1e-3)
    teacher = empty.verify(empty.read_teacher(), "teacher")
    learning.load_weights(learning.build_teacher(tiny), teacher.files[WEIGHTS])
    assert serving.files[DRIFT] == teacher.files[DRIFT]
    assert PROBE not in teacher.files
    probe = safetensors.numpy.load(serving.files[PROBE])
    pilot = segments_of_device(tiny, "pilot-0").segments
    assert all(any((x == segment).all() for segment in pilot) for x in probe["inputs"])
    assert len(probe["inputs"]) == len(np.unique(probe["inputs"], axis=0)) == 8
    model = learning.load_weights(tiny.build_model(), serving.files[WEIGHTS])
    answers = learning.predict(model.eval(), probe["inputs"])
    np.testing.assert_allclose(probe["outputs"], answers, atol=1e-5)

    assert prepare(TINY, tiny, empty, key, cache) is None  # what serves is left as it is
    again = Registry(tmp_path / "again", tiny.name, tiny.version, [key.public_key()])
    cached = unwrap(prepare(TINY, tiny, again, key, cache))
    assert cached.cached
    assert again.load(cached.model).files == serving.files


def test_nobody_trains_on_the_people_held_out_or_on_the_fleet(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """Whatever their recordings are, the first model and the teacher come out bit for bit."""

    def elsewhere(device: str) -> Iterator[Reading]:
        known = device.startswith(("pilot", "lab"))
        for reading in tiny.readings(device):
            yield reading if known else reading._replace(values=[v + 9 for v in reading.values])

    quick = replace(tiny.training, central_epochs=2)
    made = []
    for name, readings in (("as-it-is", tiny.readings), ("elsewhere", elsewhere)):
        task = replace(tiny, readings=readings, training=quick)
        registry = Registry(tmp_path / name, tiny.name, tiny.version, [key.public_key()])
        prepare(TINY, task, registry, key, tmp_path / f"{name}-cache")
        serving, teacher = registry.serving(), registry.verify(registry.read_teacher(), "teacher")
        assert serving is not None
        learned = serving.files[WEIGHTS], teacher.files[WEIGHTS], serving.files[DRIFT]
        made.append((learned, registry.central(HELD_OUT)))
    assert made[0][0] == made[1][0]
    assert made[0][1] != made[1][1]


def test_the_reference_for_drift_is_that_of_the_central_data(tiny: Task) -> None:
    names = tiny.device_names("pilot", "lab")
    devices = [segments_of_device(tiny, name) for name in names]
    answers = [np.zeros((len(d.times), tiny.outputs), np.float32) for d in devices]
    found = make_reference(tiny, devices, answers)
    assert found.independent == 0.5  # a segment begins every half segment
    assert [(f.channel, f.kind) for f in found.features] == [
        ("x", "mean"), ("x", "spread"), ("y", "mean"), ("y", "spread"), ("predictions", "answer"),
    ]  # fmt: skip
    for feature in found.features:
        assert sum(feature.counts) == sum(len(d.times) for d in devices)
    assert found.features[-1].counts == [0, sum(feature.counts), 0, 0, 0, 0, 0]
    assert not found.features[-1].ordered
    assert found.features[-1].effect == EFFECT  # all devices answer the same
    assert found.features[0].effect > EFFECT  # machines are mounted differently
    assert Reference.decode(found.encode()) == found


def test_the_least_segments_for_a_decision_are_half_of_what_eight_windows_hold(tiny: Task) -> None:
    """Of events at any time the recordings say how many."""
    assert least_of(tiny, 0.5) == least_of(tiny, 5.0) == 40
    events = replace(tiny, rate_hz=None, segment=Segment(samples=1, hop=1))
    for apart_s, least in {20.0: 8, 0.5: 40, 0.1: 100}.items():
        assert least_of(events, apart_s) == least
    assert least_of(events, 0.1, 0.5) == 40  # the quieter device is decided on, too


def least_of(task: Task, *apart_s: float) -> int:
    devices = []
    values = np.zeros((400, *task.segment_shape), np.float32)
    labels, answers = (np.zeros((400, n), np.float32) for n in (task.label_size, task.outputs))
    for each in apart_s:
        times = np.arange(400, dtype=np.int64) * round(each * 1e6)
        devices.append(Segments(times, values, labels))
    return make_reference(task, devices, [answers] * len(devices)).minimum


def test_categories_are_in_the_reference_by_their_names(
    key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "fresh", payments.name, payments.version, [key.public_key()])
    reference = "tests.rig.made_up.payments_task:task"
    report = unwrap(prepare(reference, payments, registry, key, tmp_path / "cache"))
    serving = unwrap(registry.serving())
    assert serving.model == report.model
    found = Reference.decode(serving.files[DRIFT])
    assert {f.channel for f in found.features if f.kind == "category"} == {"merchant", "way"}


def test_a_task_without_a_labelled_pilot_is_named(
    tiny: Task, key: Ed25519PrivateKey, empty: Registry, tmp_path: Path
) -> None:
    nobody = replace(tiny, devices=list)
    with pytest.raises(TaskError, match="no device of role 'pilot'"):
        prepare(TINY, nobody, empty, key, tmp_path / "cache")
    assert empty.serving() is None


def test_other_data_has_first_models_of_its_own(tiny: Task) -> None:
    def relabelled(device: str) -> Iterator[Reading]:
        for reading in tiny.readings(device):
            yield reading._replace(label=None if reading.label is None else 0)

    changed = replace(tiny, readings=relabelled)
    before, again = (initial_model.source_digest("x:task", tiny, 1) for _ in range(2))
    assert before == again
    assert initial_model.source_digest("x:task", changed, 1) != before


def test_a_training_says_every_ten_seconds_how_far_it_is() -> None:
    said, seconds = list[str](), itertools.count()
    step = steps_said(said.append, "the teacher", 25, 10, 7, lambda: float(next(seconds)))
    assert not any(step() for _ in range(21))  # three steps an epoch, a second each
    assert said == [
        "training the teacher: epoch 4 of 7, 13 s left",
        "training the teacher: epoch 7 of 7, 2 s left",
    ]
