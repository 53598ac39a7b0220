"""A task: all that a user says about what a fleet learns, in one Python file.

The file is named on every command line as `path/to/file.py:attribute`, or as
`package.module:attribute`, and is imported by every process. Devices import
it without torch, so `import torch` belongs inside `build_model` and `build_teacher`.
"""

import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from streams.contract.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

UNPACED_BUDGET_S = 1.0  # for an answer of a task whose readings come at no rate
SAMPLE_PERIODS_IN_A_GAP = 2.5
MAX_SEGMENT_VALUES = 200_000  # float32: 800 kB, under the brokers' default limit of 1 MB

Role = Literal["pilot", "lab", "fleet", "held-out"]
Strategy = Literal[
    "fedavg", "fedprox", "fedbuff", "fedadam", "fedyogi",
    "median", "trimmed-mean", "krum", "multi-krum",
]  # fmt: skip
STRATEGIES: tuple[str, ...] = get_args(Strategy)
PRIVATE = ("fedavg", "fedprox", "fedbuff")  # whose step is a mean, of which noise is calibrated


class Reading(NamedTuple):
    """One sensor sample.

    `time_us` is microseconds since 1970 (UTC), or since the start of a recording that is replayed;
    `values` has one float per channel; `label` is the class index or the target where it is known.
    """

    time_us: int
    values: Sequence[float]
    label: float | Sequence[float] | None = None


class Answered(NamedTuple):
    """A segment as the device answered it, in event time: (channels, samples) and (outputs,)."""

    first_us: int
    last_us: int
    segment: np.ndarray
    outputs: np.ndarray


class Outcome(NamedTuple):
    """The truth of what a device saw from `first_us` to `last_us`, known only later: the class
    index, or the value of each target."""

    first_us: int
    last_us: int
    label: float | Sequence[float]


@dataclass(frozen=True)
class Segment:
    """How readings are cut: `samples` at once, a new segment every `hop` samples.

    A segment has a label when at least `label_share` of its samples carry the same one.
    """

    samples: int
    hop: int
    label_share: float = 0.75


@dataclass(frozen=True)
class Device:
    """A source of readings and what it is for.

    pilot     central data; trains the first device model (and the teacher)
    lab       central data; trains the teacher
    fleet     a device of the fleet
    held-out  never trained on; the candidate is evaluated on it

    Devices of one `group` (a site, a model of machine) are a cohort: no candidate is served that
    does worse for them. Those without one are none.
    """

    name: str
    role: Role
    group: str = ""

    def __post_init__(self) -> None:
        if self.group and not DEVICE_NAME.fullmatch(self.group):
            raise TaskError(
                f"device {self.name!r}: group {self.group!r} must be letters, digits, '.', '_' "
                "or '-', and start with a letter or a digit"
            )


@dataclass(frozen=True)
class Aggregation:
    """Parameters of `Training.strategy`: learning_rate, betas and tau of fedadam's and fedyogi's
    optimiser, `trim` of trimmed-mean (the share cut off at each end), `byzantine` of krum and
    multi-krum (how many devices may be bad).

    An update that comes up to `max_staleness` rounds late still counts, s rounds late for
    1 / sqrt(1 + s) of its length. With a `buffer` no round waits for anyone: each ends with so many
    updates, of whatever round; 0: none, and fedbuff's 10.
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
    """Central differential privacy of a device: its update is cut to the length `clip` on the
    device, the server adds noise of standard deviation noise_multiplier * clip to the sum. Rounds
    end when `epsilon` would be exceeded, over all runs of the task; None: it is only shown.
    """

    clip: float
    noise_multiplier: float
    epsilon: float | None = None
    delta: float = 1e-5


@dataclass(frozen=True)
class Training:
    """How a device fine-tunes and how the first model and the teacher are made.

    optimizer, proximal, train_only and max_steps are of a device's fine-tuning, see learning.fit.
    `strategy` is how the server makes one model of the devices' (fedprox is fedavg there, and needs
    `proximal`). `shared` names the modules that it averages, as "features"; the others stay as they
    were sent out. Empty: all.
    A device keeps at most `samples` segments of at most `samples_mb` (1,000,000 bytes), none older
    than `samples_age_h`. `personal`: it may train a copy of its own after each release, for
    `personal_epochs` at `personal_learning_rate` and without the task's augmentation, which is for
    what others do.
    A round ends with `devices_per_round` updates, of `over_selection` times as many devices that
    are asked, drawn by lot; 0: all are asked. `payload` is that of floats on their way:
    float16 halves what devices receive and send.
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
    label_share: float = 0.1  # of a replay's true labels, those the device is told
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

    `outcomes(device, answered)` is for labels that become known later: a generator that is given
    the device's answers as they come, on a thread of its own, and yields what has turned out.
    `source` says whether `readings` are recorded (replayed at any speed, repeated) or live (taken
    as they come). `rate_hz` is None where readings come at no rate. `max_gap_s` is the longest time
    between two readings of a segment; None: 2.5 sample periods, or any time without a rate.
    `upload_dtype` is that of the segments that leave a device; float16 halves them.
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
    future_s: float = 3600.0  # an event further ahead of the worker's clock is not believed
    outcomes: "Callable[[str, Iterator[Answered]], Iterable[Outcome]] | None" = None
    source: Literal["recorded", "live"] = "recorded"
    max_gap_s: float | None = None
    upload: Literal["segment", "prediction"] = "segment"
    upload_dtype: Literal["float32", "float16"] = "float32"
    tolerance: float = 0.1  # regression: answers within it count as agreeing
    retrain_below: float = 0.9  # agreement with the teacher under which the controller starts a run
    margin: float = 0.01  # by how much a candidate must beat the running model
    latency_budget_ms: float | None = None  # of an answer (p99); None: the time between segments
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        problem = _problem(self)
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
        return [device.name for device in self.devices() if device.role in roles]

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


def _problem(task: Task) -> str | None:
    """The first thing wrong with a task's fields, for a person; None when all is well."""
    if not NAME.fullmatch(task.name):
        return "name must be lower-case letters, digits, - or _, and start with a letter"
    if bool(task.classes) == bool(task.targets):
        return "give either classes=(...) or targets=(...)"
    if task.classes and len(task.classes) < 2:
        return "classes needs at least two names"
    if not task.channels or len(set(task.channels)) != len(task.channels):
        return "channels must be names without a repetition"
    if task.segment.samples < 1 or not 1 <= task.segment.hop <= task.segment.samples:
        return "segment needs samples >= 1 and 1 <= hop <= samples"
    if len(task.channels) * task.segment.samples > MAX_SEGMENT_VALUES:
        return f"a segment holds more than {MAX_SEGMENT_VALUES} values: it would not fit a message"
    positive: dict[str, float] = {"window_s": task.window_s, "version": task.version}
    if task.rate_hz is not None:
        positive["rate_hz"] = task.rate_hz
    if task.max_gap_s is not None:
        positive["max_gap_s"] = task.max_gap_s
    if task.latency_budget_ms is not None:
        positive["latency_budget_ms"] = task.latency_budget_ms
    for name, value in positive.items():
        if not value > 0:
            return f"{name} must be above 0, not {value}"
    if task.lateness_s < 0 or task.idle_close_s <= 0 or task.future_s < 0:
        return "lateness_s and future_s must be at least 0 and idle_close_s above 0"
    if task.training.optimizer not in ("sgd", "adamw"):
        return f"training.optimizer must be 'sgd' or 'adamw', not {task.training.optimizer!r}"
    steps = task.training.max_steps
    if task.training.proximal < 0 or (steps is not None and steps < 1):
        return "training.proximal must be at least 0 and training.max_steps at least 1"
    if task.source not in ("recorded", "live"):
        return f"source must be 'recorded' or 'live', not {task.source!r}"
    if task.upload not in ("segment", "prediction"):
        return f"upload must be 'segment' or 'prediction', not {task.upload!r}"
    if task.upload_dtype not in ("float32", "float16"):
        return f"upload_dtype must be 'float32' or 'float16', not {task.upload_dtype!r}"
    kept = task.training
    if kept.samples < 1 or kept.samples_mb <= 0 or (kept.samples_age_h or 1) <= 0:
        return "training.samples, samples_mb and samples_age_h must be above 0"
    if kept.devices_per_round < 0 or not kept.over_selection >= 1:
        return "training.devices_per_round must be at least 0 and over_selection at least 1"
    if kept.payload not in ("float32", "float16"):
        return f"training.payload must be 'float32' or 'float16', not {kept.payload!r}"
    if found := strategy_problem(task.training.strategy, task.training):
        return f"training.{found}"
    for name in ("build_model", "readings", "devices"):
        if not callable(getattr(task, name)):
            return f"{name} must be a function"
    return None


def strategy_problem(strategy: str, training: Training) -> str | None:
    """What is wrong with running `strategy` on a task that is trained so; None when all is well."""
    options = training.aggregation
    if strategy not in STRATEGIES:
        return f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}"
    if strategy == "fedprox" and not training.proximal > 0:
        return "strategy fedprox needs training.proximal above 0: the term is in the devices' loss"
    if not (options.learning_rate > 0 and options.tau > 0):
        return "aggregation: learning_rate and tau must be above 0"
    if len(options.betas) != 2 or not all(0 <= beta < 1 for beta in options.betas):
        return f"aggregation: betas must be two numbers from 0 to under 1, not {options.betas}"
    if not 0.01 <= options.trim <= 0.49:
        return f"aggregation: trim must be from 0.01 to 0.49, not {options.trim}"
    if options.byzantine < 0:
        return f"aggregation: byzantine must be at least 0, not {options.byzantine}"
    if (privacy := training.privacy) is not None:
        if strategy not in PRIVATE:
            return f"strategy {strategy} cannot be private: {', '.join(PRIVATE)} can"
        if not (privacy.clip > 0 and privacy.noise_multiplier > 0 and 0 < privacy.delta < 1):
            return "privacy: clip and noise_multiplier must be above 0, delta between 0 and 1"
        if privacy.epsilon is not None and not privacy.epsilon > 0:
            return f"privacy: epsilon must be above 0, not {privacy.epsilon}"
    if options.max_staleness < 0 or options.buffer < 0:
        return "aggregation: max_staleness and buffer must be at least 0"
    return None


def is_under(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor lies in one of `modules`; every one does where none is named."""
    return not modules or any(name == m or name.startswith(f"{m}.") for m in modules)


def load_task(reference: str) -> Task:
    """Import the task named by `path/to/file.py:attribute` or `package.module:attribute`.

    Raises TaskError that says what is wrong with the reference, the file or the attribute.
    """
    location, colon, attribute = reference.rpartition(":")
    if not colon or not location or not attribute:
        raise TaskError(f"task {reference!r}: write it as path/to/file.py:task")
    module = _import(location, reference)
    try:
        task = getattr(module, attribute)
    except AttributeError:
        raise TaskError(f"task {reference!r}: {location} has no attribute {attribute!r}") from None
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise TaskError(f"task {reference!r}: {attribute} is a {kind}, not a Task")
    return task


def _import(location: str, reference: str) -> object:
    path = Path(location)
    try:
        if path.suffix != ".py":
            return importlib.import_module(location)
        if not path.is_file():
            raise TaskError(f"task {reference!r}: there is no file {path}")
        name = f"tidewheel_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise TaskError(f"task {reference!r}: {path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses and pickles look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except TaskError:
        raise
    except Exception as exc:
        text = f"{type(exc).__name__}: {exc}".splitlines()[0]
        raise TaskError(f"task {reference!r}: importing {location} failed: {text}") from exc


def check_model(task: Task) -> None:
    """Build the task's models and run each once; TaskError names a wrong shape. Needs torch."""
    import torch

    channels, samples = task.segment_shape
    probes: list[tuple[str, Callable[[], torch.nn.Module], tuple[int, ...], tuple[int, ...]]] = [
        ("build_model", task.build_model, (2, channels, samples), (2, task.outputs))
    ]
    if task.build_teacher is not None:
        window = (2, 3, channels, samples)
        probes.append(("build_teacher", task.build_teacher, window, (2, 3, task.outputs)))
    for name, build, given, expected in probes:
        try:
            with torch.no_grad():
                model = build().eval()
                inputs = [torch.zeros(given)]
                if name == "build_teacher":
                    inputs.append(torch.ones(given[:2], dtype=torch.bool))
                shape = tuple(model(*inputs).shape)
        except Exception as exc:
            text = f"{type(exc).__name__}: {exc}".splitlines()[0]
            raise TaskError(f"task {task.name!r}: {name} fails on a {given} input: {text}") from exc
        if shape != expected:
            raise TaskError(
                f"task {task.name!r}: {name} gives {shape} for a {given} input; "
                f"it must give {expected}"
            )
    _check_named_modules(task)


def _check_named_modules(task: Task) -> None:
    """Each module of train_only and shared holds parameters, and some are both trained and shared
    where both are given."""
    training = task.training
    if not training.train_only and not training.shared:
        return
    names = [name for name, _ in task.build_model().named_parameters()]
    found: dict[str, set[str]] = {}
    for setting in ("train_only", "shared"):
        modules: tuple[str, ...] = getattr(training, setting)
        for module in modules:
            if not any(name.startswith(f"{module}.") for name in names):
                known = ", ".join(sorted({name.partition(".")[0] for name in names}))
                raise TaskError(
                    f"task {task.name!r}: training.{setting} names {module!r}, in which there is "
                    f"nothing to learn; the model's modules are {known}"
                )
        found[setting] = {n for n in names if any(n.startswith(f"{m}.") for m in modules)}
    if training.train_only and training.shared and not found["train_only"] & found["shared"]:
        raise TaskError(
            f"task {task.name!r}: nothing that training.train_only trains is in training.shared"
        )
