"""The first device model and the teacher, from central data.

The device model learns from the labelled segments of "pilot" people, the teacher from the windows
of "pilot" and "lab" people. Both are evaluated on held-out people, and on the fleet's people unless
the source is live: nothing of them is stored, and their readings never end.

    <cache>/pilot-<task>-<digest>/model/    files of the first version's artifact
                                  teacher/  those of the teacher's
                                  central/  heldout.safetensors, and calibration.safetensors:
                                            segments of the pilot, to quantize with
                                  report.json  written last: a folder without it is made again

The digest covers everything that the results depend on: the task's sources, torch, the training
settings and the seed. Cached results are unsigned; each installation signs them.
"""

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap import comparison, dataset, first_models, onnx_export
from federation.bootstrap.comparison import Metrics, compare, warning_of
from federation.bootstrap.dataset import Segments, make_reference, stack
from federation.bootstrap.first_models import (
    EACH_S,
    WINDOWS_PER_BATCH,
    Progress,
    few_threads,
    first_model,
    first_teacher,
    graph_of,
)
from federation.bootstrap.onnx_export import export_graph
from federation.evaluation import quantization
from federation.evaluation.accuracy import HeldOut, score
from federation.evaluation.quantization import SEGMENTS, Quantizer, make_probe, run_graph
from federation.registry.registry import CALIBRATION, HELD_OUT, Registry
from streams.contract.artifact import DRIFT, GRAPH, INT8, PROBE, WEIGHTS, Manifest, pack
from streams.contract.errors import TaskError, UsageError
from streams.contract.task import OnnxFile, Role, Task
from streams.contract.task.metrics import measured, metric_of
from streams.learning import drift_reference, learning
from streams.learning.learning import (
    predict,
    to_safetensors,
)
from streams.runtime.files import write_atomic
from streams.segments.findings import no_labels
from streams.segments.survey import TaskReadings, survey

SEED = 1
LOOKED_AT = 1000  # readings of a device, for the digest of the data
HELD_OUT_CAP = 4096  # segments that every candidate is evaluated on
NAMED = 3  # devices in one line, else their number


@dataclass(frozen=True)
class PilotReport:
    """The result; figures are in the task's `metric`, None if there are no labels to measure by."""

    model: str
    cached: bool
    seconds: float
    metric: str
    model_fleet: float | None
    model_held_out: float | None
    teacher_fleet: float | None
    teacher_held_out: float | None
    source: str = ""  # the file that the model is of, where it was not trained
    warning: str = ""


@dataclass(frozen=True)
class _Result:
    """The cached files by name, the metrics of the report and those of the first version, and the
    file that it is of, where it was not trained."""

    model: dict[str, bytes]
    teacher: dict[str, bytes]
    central: dict[str, bytes]
    metrics: Metrics
    first: dict[str, float]
    source: str


PARTS = ("model", "teacher", "central")  # of a result: a folder each


def prepare(
    task_ref: str,
    task: Task,
    registry: Registry,
    key: Ed25519PrivateKey,
    cache: Path,
    progress: Progress = lambda _text: None,
    seed: int = SEED,
) -> PilotReport | None:
    """Train model 1 and the teacher, sign and serve them; return None if a model is already
    served."""
    if registry.serving() is not None and registry.teacher() is not None:
        return None
    began = time.monotonic()
    folder = cache / f"pilot-{task.name}-{source_digest(task_ref, task, seed)}"
    result = _cached(folder)
    cached = result is not None
    if result is None:
        with few_threads(task):
            result = _train(task, seed, progress)
        about = vars(result).copy()
        for part in PARTS:
            for name, data in about.pop(part).items():
                write_atomic(folder / part / name, data)
        write_atomic(folder / "report.json", json.dumps(about).encode())
    model = _register(task, registry, key, result)
    metrics, metric = result.metrics, metric_of(task)
    warning = warning_of(task, metrics)
    seconds = time.monotonic() - began
    source = result.source.partition(" ")[0]
    return PilotReport(
        model, cached, seconds, metric.name, **metrics, source=source, warning=warning
    )


def source_digest(task_ref: str, task: Task, seed: int = SEED) -> str:
    """Return a digest of the settings, the sources and the data.

    Sources are the task's modules and the modules beside them that they use; a task derived from
    another one has functions of both. Of the data it takes the first LOOKED_AT readings of each
    device that is trained on: to read all would take as long as what the cache saves.
    """
    used = (task.build_model, task.build_teacher, task.readings, task.devices, task.augment)
    given = [each.path for each in used if isinstance(each, OnnxFile)]
    sources = {str(path) for path in (task.first_model, *given) if path}
    functions = [each for each in used if each is not None and not isinstance(each, OnnxFile)]
    for name in {function.__module__ for function in functions}:
        module = sys.modules[name]
        if getattr(module, "__file__", None) is None:  # `devices=list`, a function in a notebook
            continue
        sources.add(str(module.__file__))
        for value in vars(module).values():  # `from streams.tasks import hapt`
            path = getattr(value, "__file__", None)
            if path and Path(path).parent == Path(str(module.__file__)).parent:
                sources.add(str(path))
    parts = (
        learning, onnx_export, quantization, drift_reference, dataset, first_models, comparison
    )  # fmt: skip
    sources |= {__file__, *(str(part.__file__) for part in parts)}
    settings = [
        task.version,
        task.source,
        task.quantize,
        metric_of(task).name,
        torch.__version__,
        asdict(task.training),
        seed,
        WINDOWS_PER_BATCH,
    ]
    digest = hashlib.sha256(json.dumps([task_ref.rpartition(":")[2], settings]).encode())
    for path in sorted(sources):
        try:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError as exc:
            raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    for device in task.device_names("pilot", "lab"):
        readings = itertools.islice(TaskReadings(task, device), LOOKED_AT)
        try:
            digest.update(repr([device, *map(tuple, readings)]).encode())
        except TaskError as exc:
            raise TaskError(f"{device}: {exc}") from exc
    return digest.hexdigest()[:16]


def _cached(folder: Path) -> _Result | None:
    try:
        about = json.loads((folder / "report.json").read_text())
        for part in PARTS:
            about[part] = {path.name: path.read_bytes() for path in (folder / part).iterdir()}
        return _Result(**about)
    except (OSError, TypeError, ValueError):
        return None


def _train(task: Task, seed: int, progress: Progress) -> _Result:
    pilot = _read(task, "pilot", progress)
    known, given = stack(task, pilot), bool(task.first_model) or not task.learns
    _check_pilots(task, pilot, known, given=given)
    model, source = first_model(task, known, seed, progress)
    lab = _read(task, "lab", progress)
    central = pilot + lab
    teacher = first_teacher(task, model if given else None, central, seed, progress)
    progress("exporting the device model to ONNX" if task.learns else "checking the ONNX graph")
    files = {WEIGHTS: to_safetensors(model.state_dict()), GRAPH: export_graph(task, model)}
    theirs = {WEIGHTS: to_safetensors(teacher.state_dict())}
    theirs |= {GRAPH: graph} if (graph := graph_of(teacher)) else {}
    graph, weights = files[GRAPH], safetensors.numpy.load(files[WEIGHTS])
    seen = known.segments
    seen = seen if len(seen) else np.concatenate([device.segments for device in pilot])
    rows = np.unique(np.linspace(0, len(seen) - 1, SEGMENTS).astype(np.int64))
    central_files = {CALIBRATION: safetensors.numpy.save({"segments": seen[rows]})}
    quantizer = Quantizer.of(task, central_files[CALIBRATION])
    int8, version = quantizer.int8(graph, weights), quantizer.answering(graph, weights)
    files |= {INT8: int8} if int8 else {}

    def answer(segments: np.ndarray) -> np.ndarray:
        if int8:
            return run_graph(version[0], segments, {}, task.build_model)
        return predict(model, segments)

    files[PROBE] = make_probe(*version, seen, task.build_model)
    answers = [answer(device.segments) for device in central]
    files[DRIFT] = theirs[DRIFT] = make_reference(task, central, answers).encode()
    del pilot, known, lab, central, seen
    held = _read(task, "held-out", progress)
    fleet = [] if task.source == "live" else _read(task, "fleet", progress)
    progress("evaluating both on labelled recordings")
    metrics = compare(task, answer, teacher, {"fleet": fleet, "held_out": held})
    kept = _capped(stack(task, held))
    central_files[HELD_OUT] = kept.encode()
    first = _as_the_gate_measures(task, answer, kept)
    return _Result(files, theirs, central_files, metrics, first, source)


def _check_pilots(task: Task, pilot: list[Segments], known: HeldOut, *, given: bool) -> None:
    """Raise TaskError unless the pilots have what the first model needs: labelled segments to learn
    from; of one that is given segments to try it on."""
    if len(known.labels) or (given and any(len(device.segments) for device in pilot)):
        return
    pilots = [survey(task, device) for device in task.devices() if device.role == "pilot"]
    why = no_labels(task, pilots) if pilots else "give a device that role"
    what = "segment" if given else "labelled segment"
    raise TaskError(f"task {task.name!r}: no device of role 'pilot' has a {what}: {why}")


def _as_the_gate_measures(
    task: Task, answer: Callable[[np.ndarray], np.ndarray], kept: HeldOut
) -> dict[str, float]:
    """Return the metrics that a run's version has too, on the same segments."""
    decides, audit = kept.audited(task)
    found = {"audit_segments": float(len(audit.labels))} if len(audit.labels) else {}
    for name, part in (("held_out", decides), ("audit", audit)):
        if len(part.labels):
            outputs = answer(part.segments)
            found[name] = score(task, outputs, part.labels).value
            if part is audit:
                found |= {f"audit_{n}": v for n, v in measured(task, outputs, part.labels).items()}
    return found


def held_out(task: Task) -> HeldOut:
    """Return the held-out segments as `prepare` stores them."""
    names = task.device_names("held-out")
    return _capped(stack(task, [dataset.segments_of_device(task, name) for name in names]))


def _read(task: Task, role: Role, progress: Progress) -> list[Segments]:
    names, found = task.device_names(role), list[Segments]()
    who = f": {', '.join(names)}" if len(names) <= NAMED else f", {len(names)} devices"
    progress(f"reading the recordings of the role {role!r}{who}")
    said = time.monotonic()
    for name in names:
        found.append(dataset.segments_of_device(task, name))
        if (now := time.monotonic()) - said >= EACH_S and len(found) < len(names):
            said, read = now, sum(len(each.segments) for each in found)
            progress(f"read {len(found)} of {len(names)} devices, {read:,} segments")
    return found


def _capped(data: HeldOut) -> HeldOut:
    """Return at most HELD_OUT_CAP segments, the same ones at every call."""
    if len(data.labels) <= HELD_OUT_CAP:
        return data
    rows = np.sort(np.random.default_rng(0).permutation(len(data.labels))[:HELD_OUT_CAP])
    return HeldOut(np.ascontiguousarray(data.segments[rows]), data.labels[rows])


def _register(task: Task, registry: Registry, key: Ed25519PrivateKey, result: _Result) -> str:
    """Sign and store both artifacts; serve the model unless one is served."""
    manifest = Manifest(
        task=task.name,
        task_version=task.version,
        number=1,
        created_us=time.time_ns() // 1000,
        metrics=result.first,
        source=result.source,
        key="",
        files=[],
    )
    for name, data in result.central.items():
        registry.store.write(name, data)
    teacher = manifest.replace(
        kind="teacher",
        source="",
        metrics={
            name: value
            for name, value in result.metrics.items()
            if name.startswith("teacher_") and value is not None
        },
    )
    registry.add_teacher(pack(teacher, result.teacher, key))
    serving = registry.serving()
    if serving is not None:
        return serving.model
    artifact = registry.add(pack(manifest, result.model, key))
    registry.serve(artifact.model, key, "the first model")
    return artifact.model
