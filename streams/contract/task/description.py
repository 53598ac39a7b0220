"""A task as users write it, and what follows from its fields alone."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from streams.contract.errors import TaskError
from streams.contract.task.metrics import among, installed, top
from streams.contract.task.onnx_file import OnnxFile
from streams.contract.task.parts import (
    EVEN,
    Answered,
    Device,
    Metric,
    Outcome,
    Reading,
    Readings,
    Role,
    Segment,
    Training,
)
from streams.contract.task.validation import problem_of
from streams.contract.task.windows import Count, Tumbling, Window
from streams.contract.topics import task_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

UNPACED_BUDGET_S = 1.0  # for an answer of a task whose readings come at no rate
SAMPLE_PERIODS_IN_A_GAP = 2.5
HALF_A_MINUTE = Tumbling(30.0)


@dataclass(frozen=True)
class Task:
    """What a fleet learns. Exactly one of `classes` and `targets` is given.

    name, version    the task's identity; another version is another task, with its own first model,
                     topics and state folder
    channels         names of the values of a reading: each a number, or a `Category`; those of
                     `Time` follow from the readings' times
    rate_hz          readings a second; None where they come at no fixed rate
    segment          how readings are cut
    build_model      () -> module: (batch, channels, samples) -> (batch, outputs); or an OnnxFile,
                     which answers and does not learn
    build_teacher    () -> module: (batch, segments, channels, samples), and a mask
                     (batch, segments) of the segments that exist -> (batch, segments, outputs);
                     or an OnnxFile. An OnnxFile, and the device model where it is None, answers
                     the segments of a window one by one
    first_model      a file with the first model's weights, which is then not trained: safetensors,
                     or a state dict that torch has saved; "": it is trained on the pilots
    readings         (device) -> iterable of Reading, or of Readings: many as arrays
    source           "recorded": `readings` is a recording, replayed at any speed and repeated;
                     "live": a sensor, taken as it comes
    devices          () -> all Devices
    outcomes         (device, iterator of Answered) -> iterable of Outcome: labels that become
                     known later; it runs on a thread of its own
    quantize         "int8": devices answer with a graph that was quantized at release, a quarter of
                     the bytes; weights are trained in float
    augment          (batch of segments, generator) -> batch: only in training
    window           how events are grouped, in event time: Tumbling, Session, Count, Sliding, or a
                     Window of your own. The teacher scores the events of a window together, and a
                     window has one report
    lateness_s       how long after its end a window stays open for late events and labels, seconds
    idle_close_s     a silent device's windows are closed after this wall time, seconds
    answer_by        "device", or "worker": events may come as JSON without an answer, from a device
                     that has no model, and the worker answers with the version it would serve
    upload           "segment", or "prediction": raw data never leaves the device
    tolerance        regression: answers within it count as agreeing, and as correct
    metric           what candidates are judged by, what starts runs, and what tables show:
                     accuracy, balanced_accuracy, macro_f1, auc, average_precision or top_k, as
                     "top_5", with which an answer is right if the label is among its k largest
                     outputs; for targets mae, rmse, r2 or within; or a Metric. "": accuracy, for
                     targets mae
    retrain          what starts a run: the share of answers that agree with the teacher, or with
                     the labels, is below it; where windows tell an error, that is above it. None:
                     a share of 0.9, a Brier distance of 0.05, an error of half of `tolerance`
    margin           by how much a candidate must be better than the served version in that metric:
                     of scores the difference, of errors the share by which they shrink
    may_trade_classes  whether a candidate may recognize a class less often on held-out devices,
                     beyond chance, by up to .05, though the class's F1 does not rise
    threshold        of two classes: an answer is the second one where its softmax is at least this
    latency_budget_ms  99th percentile of an answer, milliseconds; None: the time between segments
    training         how devices, first model and teacher are trained

    Raises TaskError for the first field that cannot be right.

    >>> from tidewheel import Device, Reading, Segment, Task
    >>> def readings(device):
    ...     return (Reading(i * 10_000, (float(i % 2), 0.0), label=i % 2) for i in range(1000))
    >>> task = Task(
    ...     name="demo", version=1, channels=("x", "y"), rate_hz=100,
    ...     segment=Segment(samples=20, hop=10), classes=("low", "high"),
    ...     build_model=lambda: None, readings=readings,
    ...     devices=lambda: [Device("d0", "fleet"), Device("p0", "pilot")],
    ... )
    >>> task.segment_shape, task.outputs, task.device_names("fleet")
    ((2, 20), 2, ['d0'])
    """

    name: str
    version: int
    channels: tuple[str, ...]
    rate_hz: float | None
    segment: Segment
    build_model: "Callable[[], torch.nn.Module] | OnnxFile"
    readings: Callable[[str], Iterable[Reading | Readings]]
    devices: Callable[[], Sequence[Device]]
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    build_teacher: "Callable[[], torch.nn.Module] | OnnxFile | None" = None
    first_model: str | Path = ""
    quantize: Literal["", "int8"] = ""
    augment: "Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None" = None
    window: Window = HALF_A_MINUTE
    lateness_s: float = 5.0
    idle_close_s: float = 10.0
    outcomes: "Callable[[str, Iterator[Answered]], Iterable[Outcome]] | None" = None
    source: Literal["recorded", "live"] = "recorded"
    answer_by: Literal["device", "worker"] = "device"
    upload: Literal["segment", "prediction"] = "segment"
    tolerance: float = 0.1
    retrain: float | None = None
    metric: str | Metric = ""
    margin: float = 0.01
    may_trade_classes: bool = False
    threshold: float = 0.5
    latency_budget_ms: float | None = None
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", installed(self.metric))
        problem = problem_of(self)
        if problem:
            raise TaskError(f"task {self.name!r}: {problem}")

    @property
    def id(self) -> str:
        """Name and version, which the names of its topics and groups begin with: `har.v2`."""
        return task_id(self.name, self.version)

    @property
    def learns(self) -> bool:
        """Whether devices can train its model."""
        return not isinstance(self.build_model, OnnxFile)

    @property
    def outputs(self) -> int:
        """Values per answer: one per class, or one per target."""
        return len(self.classes or self.targets)

    @property
    def label_size(self) -> int:
        """Values per label: 1 (the class index), or one per target."""
        return 1 if self.classes else len(self.targets)

    @property
    def segment_shape(self) -> tuple[int, int]:
        """(channels, samples)"""
        return len(self.channels), self.segment.samples

    @property
    def latency_budget_s(self) -> float:
        if self.latency_budget_ms is not None:
            return self.latency_budget_ms / 1e3
        return self.segment.hop / self.rate_hz if self.rate_hz else UNPACED_BUDGET_S

    @property
    def max_gap_us(self) -> float:
        """The longest time between two readings of one segment, microseconds."""
        if self.segment.max_gap_s is not None:
            return self.segment.max_gap_s * 1e6
        return SAMPLE_PERIODS_IN_A_GAP * 1e6 / self.rate_hz if self.rate_hz else math.inf

    @property
    def segments_per_window(self) -> float:
        """How many segments a window holds at most; 1 where that is not known."""
        if isinstance(self.window, Count):
            return self.window.events
        return self.window.longest_s * self.rate_hz / self.segment.hop if self.rate_hz else 1.0

    @cached_property  # read for every message and window
    def window_us(self) -> int:
        """How much event time a window covers at most; devices split their samples by it."""
        return round(self.window.longest_s * 1e6)

    @property
    def open_s(self) -> float:
        """After how long a worker closes a window at the latest, seconds. Its messages hold back
        those after them: a device whose event time stands still would hold its partition until the
        memory is full."""
        return 2 * (self.window.longest_s + self.lateness_s) + self.idle_close_s

    @cached_property
    def aligned(self) -> bool:
        """Whether an event's time alone says its window."""
        return isinstance(self.window, Tumbling)

    @cached_property
    def lateness_us(self) -> int:
        return round(self.lateness_s * 1e6)

    def device_names(self, *roles: Role) -> list[str]:
        """Names of the devices with one of `roles`, in the task's order."""
        devices = self.devices()
        names = [device.name for device in devices]
        if twice := next((name for name, n in Counter(names).items() if n > 1), None):
            raise TaskError(f"task {self.name!r}: device {twice!r} is listed twice")
        return [device.name for device in devices if device.role in roles]

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Return outputs (n, outputs) whose largest is the class that the answer stands for."""
        if self.threshold == EVEN:
            return outputs
        return np.asarray(outputs - [0.0, math.log(self.threshold / (1 - self.threshold))])

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        """(n, outputs) -> (n,) the classes that a model answers."""
        return np.asarray(self.decided(outputs).argmax(axis=1))

    def agrees(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """(n, outputs) and (n, outputs) -> (n,) bool: the reference's class is the answer's, or for
        `top_k` one of its k largest outputs; or within `tolerance`."""
        if self.classes:
            return among(self.decided(answers), self.answers(reference), top(self.metric))
        return np.asarray((np.abs(answers - reference) <= self.tolerance).all(axis=1))

    def correct(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, outputs) and (n, label_size) -> (n,) bool against true labels."""
        if self.classes:
            return among(self.decided(answers), labels[:, 0].astype(np.int64), top(self.metric))
        return np.asarray((np.abs(answers - labels) <= self.tolerance).all(axis=1))

    def labels_from(self, outputs: np.ndarray) -> np.ndarray:
        """A model's outputs as labels: (n, outputs) -> (n, label_size) float32."""
        if self.classes:
            return self.answers(outputs)[:, None].astype(np.float32)
        return np.asarray(outputs, dtype=np.float32)
