"""The parts of a task, as users write them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from streams.contract.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
UNPACED_BUDGET_S = 1.0  # for an answer of a task whose readings come at no rate
SAMPLE_PERIODS_IN_A_GAP = 2.5
Role = Literal["pilot", "lab", "fleet", "held-out"]
Strategy = Literal[
    "fedavg", "fedprox", "fedbuff", "fedadam", "fedyogi",
    "median", "trimmed-mean", "krum", "multi-krum",
]  # fmt: skip
ROLES: tuple[str, ...] = get_args(Role)
STRATEGIES: tuple[str, ...] = get_args(Strategy)


class Reading(NamedTuple):
    """One sensor sample.

    time_us   microseconds since 1970 (UTC), or since the start of a recording; grows from reading
              to reading
    values    one float a channel, in the order of `Task.channels`
    label     the class index, or one value a target, where the truth is known; else None

    >>> from tidewheel import Reading
    >>> Reading(20_000, (0.1, 9.8), label=1).label
    1
    """

    time_us: int
    values: Sequence[float]
    label: float | Sequence[float] | None = None


class Answered(NamedTuple):
    """A segment as the device answered it: what `Task.outcomes` gets.

    first_us, last_us   event times of its first and last reading, microseconds
    segment             (channels, samples) float32
    outputs             (outputs,) float32: a value a class, or a target

    >>> import numpy as np
    >>> from tidewheel import Answered
    >>> answered = Answered(0, 20_000, np.zeros((2, 3), np.float32), np.array([0.2, 0.8]))
    >>> int(answered.outputs.argmax())
    1
    """

    first_us: int
    last_us: int
    segment: np.ndarray
    outputs: np.ndarray


class Outcome(NamedTuple):
    """A true label that becomes known later: what `Task.outcomes` yields.

    It labels all segments of the device between the event times `first_us` and `last_us`
    (microseconds, both included) with a class index, or with one value a target.

    >>> from tidewheel import Outcome
    >>> Outcome(0, 20_000, label=1.0).label
    1.0
    """

    first_us: int
    last_us: int
    label: float | Sequence[float]


@dataclass(frozen=True)
class Segment:
    """How readings are cut: `samples` consecutive readings, a new segment every `hop` readings.

    With classes a segment has a label when at least `label_share` of its readings carry the same
    one. With targets its label is that of its last labelled reading, when at least `label_share` of
    its readings have one.

    >>> from tidewheel import Segment
    >>> Segment(samples=128, hop=64).label_share
    0.75
    """

    samples: int
    hop: int
    label_share: float = 0.75


@dataclass(frozen=True)
class Device:
    """A source of readings, and its role.

    pilot     central data; trains the first device model (and the teacher)
    lab       central data; trains the teacher
    fleet     a device of the fleet
    held-out  never trained on; candidates are evaluated on it

    Devices with the same `group` (a site, a machine type) are a cohort: the promotion gate refuses
    a candidate that is worse for a cohort. Raises TaskError for a group that is no name.

    >>> from tidewheel import Device
    >>> Device("pump-1", "fleet", group="site-a").role
    'fleet'
    """

    name: str
    role: Role
    group: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise TaskError(
                f"device {self.name!r}: role {self.role!r} must be one of {', '.join(ROLES)}"
            )
        if not DEVICE_NAME.fullmatch(self.name):
            raise TaskError(
                f"device {self.name!r}: a name has letters, digits, '.', '_' and '-', at most 63, "
                "and starts with a letter or a digit"
            )
        if self.group and not DEVICE_NAME.fullmatch(self.group):
            raise TaskError(
                f"device {self.name!r}: group {self.group!r} must be letters, digits, '.', '_' "
                "or '-', and start with a letter or a digit"
            )


@dataclass(frozen=True)
class Aggregation:
    """Parameters of `Training.strategy`.

    learning_rate, betas, tau   the server optimizer of fedadam and fedyogi
    trim                        trimmed-mean: the share cut off at each end
    byzantine                   krum, multi-krum: how many devices may be bad
    max_staleness               rounds by which an update may be late; s rounds late it counts for
                                1 / sqrt(1 + s) of its length
    buffer                      updates that end a round, whichever round they answer, so that no
                                round waits for a device; 0: synchronous rounds (fedbuff: 10)

    >>> from tidewheel import Aggregation
    >>> Aggregation(trim=0.3).trim
    0.3
    """

    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3
    trim: float = 0.2
    byzantine: int = 1
    max_staleness: int = 4
    buffer: int = 0


@dataclass(frozen=True)
class Privacy:
    """Central differential privacy of a device (McMahan et al. 2018, arXiv:1710.06963).

    The device clips its update to the length `clip`; the server adds noise with standard deviation
    noise_multiplier * clip to the sum. Rounds end before `epsilon` (at `delta`) would be exceeded,
    over all runs of the task; None: it is only reported. Needs the extra `dp`.

    >>> from tidewheel import Privacy
    >>> Privacy(clip=1.0, noise_multiplier=0.8, epsilon=8.0).delta
    1e-05
    """

    clip: float
    noise_multiplier: float
    epsilon: float | None = None
    delta: float = 1e-5


@dataclass(frozen=True)
class Training:
    """How a device fine-tunes, and how the first model and the teacher are trained.

    On the device: `learning_rate`, `epochs`, `batch_size`, `optimizer`, `proximal` (FedProx's mu),
    `train_only` (names of modules; empty: all), `max_steps`. It keeps at most `samples` segments
    and `samples_mb` megabytes, none older than `samples_age_h` hours, and trains from
    `minimum_samples` on. Of a recording's true labels it gets `label_share`; accuracy is
    measured on the others.

    On the server: `strategy` and its `aggregation` make one model of the updates. `shared` names
    the modules that are averaged, as "features"; the others stay on the device; empty: all. A run
    has `rounds`; a round ends with `devices_per_round` updates of `over_selection` times as many
    sampled devices; 0: all devices. `payload` is the type of floats on the way. `privacy` adds
    noise.

    Personalization: with `personal` a device may fine-tune its own copy of a release, for
    `personal_epochs` at `personal_learning_rate`, without the task's augmentation.

    Central: `central_epochs`, `central_learning_rate` (first model), `teacher_epochs`,
    `teacher_learning_rate`.

    >>> from tidewheel import Training
    >>> Training(strategy="median", rounds=5).epochs
    3
    """

    learning_rate: float = 0.02
    epochs: int = 3
    batch_size: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    proximal: float = 0.0
    train_only: tuple[str, ...] = ()
    max_steps: int | None = None
    central_epochs: int = 20
    central_learning_rate: float = 2e-3
    teacher_epochs: int = 20
    teacher_learning_rate: float = 3e-3
    label_share: float = 0.1
    rounds: int = 3
    minimum_samples: int = 32
    samples: int = 2048
    samples_mb: float = 16.0
    samples_age_h: float | None = None
    personal: bool = False
    personal_epochs: int = 10
    personal_learning_rate: float = 0.005
    strategy: Strategy = "fedavg"
    aggregation: Aggregation = field(default_factory=Aggregation)
    shared: tuple[str, ...] = ()
    devices_per_round: int = 0
    over_selection: float = 1.25
    payload: Literal["float32", "float16"] = "float32"
    privacy: Privacy | None = None


@dataclass(frozen=True)
class Task:
    """What a fleet learns. Exactly one of `classes` and `targets` is given.

    name, version    the task's identity; another version is another task, with its own first model
    channels         names of the values of a reading
    rate_hz          readings a second; None where they come at no fixed rate
    segment          how readings are cut
    build_model      () -> module: (batch, channels, samples) -> (batch, outputs)
    build_teacher    () -> module: (batch, segments, channels, samples), and a mask
                     (batch, segments) of the segments that exist -> (batch, segments, outputs);
                     None: the teacher answers each segment by itself
    readings         (device) -> iterable of Reading
    source           "recorded": `readings` is a recording, replayed at any speed and repeated;
                     "live": a sensor, taken as it comes
    max_gap_s        the longest time between two readings of one segment, seconds;
                     None: 2.5 sample periods, or any time where `rate_hz` is None
    devices          () -> all Devices
    outcomes         (device, iterator of Answered) -> iterable of Outcome: labels that become
                     known later; it runs on a thread of its own
    augment          (batch of segments, generator) -> batch: only in training
    window_s         length of a tumbling window of event time, seconds
    lateness_s       how long after its end a window stays open for late events, seconds
    idle_close_s     a silent device's windows are closed after this wall time, seconds
    future_s         how far a live event may be ahead of the worker's clock, seconds
    upload           "segment", or "prediction": raw data never leaves the device
    upload_dtype     type of the segments that leave the device; float16 halves them
    tolerance        regression: answers within it count as agreeing, and as correct
    retrain_below    agreement with the teacher below which the controller starts a run
    margin           by how much a candidate must be better than the served version
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
    build_model: "Callable[[], torch.nn.Module]"
    readings: Callable[[str], Iterable[Reading]]
    devices: Callable[[], Sequence[Device]]
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    build_teacher: "Callable[[], torch.nn.Module] | None" = None
    augment: "Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None" = None
    window_s: float = 30.0
    lateness_s: float = 5.0
    idle_close_s: float = 10.0
    future_s: float = 3600.0
    outcomes: "Callable[[str, Iterator[Answered]], Iterable[Outcome]] | None" = None
    source: Literal["recorded", "live"] = "recorded"
    max_gap_s: float | None = None
    upload: Literal["segment", "prediction"] = "segment"
    upload_dtype: Literal["float32", "float16"] = "float32"
    tolerance: float = 0.1
    retrain_below: float = 0.9
    margin: float = 0.01
    latency_budget_ms: float | None = None
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        from streams.contract.task.validation import problem_of

        problem = problem_of(self)
        if problem:
            raise TaskError(f"task {self.name!r}: {problem}")

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
        if self.max_gap_s is not None:
            return self.max_gap_s * 1e6
        return SAMPLE_PERIODS_IN_A_GAP * 1e6 / self.rate_hz if self.rate_hz else math.inf

    @property
    def segments_per_window(self) -> float:
        """How many segments a window holds; 1 where readings come at no rate."""
        return self.window_s * self.rate_hz / self.segment.hop if self.rate_hz else 1.0

    @property
    def window_us(self) -> int:
        return round(self.window_s * 1e6)

    def window_start(self, time_us: int) -> int:
        """The start of the tumbling window that holds `time_us`, microseconds."""
        return time_us - time_us % self.window_us

    def device_names(self, *roles: Role) -> list[str]:
        """Names of the devices with one of `roles`, in the task's order."""
        devices = self.devices()
        names = [device.name for device in devices]
        if twice := next((name for name, n in Counter(names).items() if n > 1), None):
            raise TaskError(f"task {self.name!r}: device {twice!r} is listed twice")
        return [device.name for device in devices if device.role in roles]

    def agrees(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """(n, outputs) and (n, outputs) -> (n,) bool: same class, or within `tolerance`."""
        if self.classes:
            return np.asarray(answers.argmax(axis=1) == reference.argmax(axis=1))
        return np.asarray((np.abs(answers - reference) <= self.tolerance).all(axis=1))

    def correct(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, outputs) and (n, label_size) -> (n,) bool against true labels."""
        if self.classes:
            return np.asarray(answers.argmax(axis=1) == labels[:, 0].astype(np.int64))
        return np.asarray((np.abs(answers - labels) <= self.tolerance).all(axis=1))

    def labels_from(self, outputs: np.ndarray) -> np.ndarray:
        """A model's outputs as labels: (n, outputs) -> (n, label_size) float32."""
        if self.classes:
            return np.asarray(outputs.argmax(axis=1, keepdims=True), dtype=np.float32)
        return np.asarray(outputs, dtype=np.float32)


def is_under(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor lies in one of `modules`; every one does where none is named."""
    return not modules or any(name == m or name.startswith(f"{m}.") for m in modules)
