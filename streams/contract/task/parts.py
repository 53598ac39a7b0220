"""What a task is made of: readings, segments, devices, labels, a metric, its training."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from streams.contract.errors import TaskError

EVEN = 0.5  # the threshold of two classes that leaves the larger softmax
DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
Role = Literal["pilot", "lab", "fleet", "held-out"]
ROLES: tuple[str, ...] = get_args(Role)


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


class Readings(NamedTuple):
    """Many sensor samples as arrays, which cost a device less than one by one.

    times_us   (n,) whole numbers, as those of a Reading
    values     (n, channels) numbers
    label      that of all of them, as of a Reading

    >>> import numpy as np
    >>> from tidewheel import Readings
    >>> Readings(np.arange(0, 30_000, 10_000), np.zeros((3, 2)), label=1).time_us
    0
    """

    times_us: np.ndarray
    values: np.ndarray
    label: float | Sequence[float] | None = None

    @property
    def time_us(self) -> int:
        """That of the first."""
        return int(self.times_us[0])

    def each(self) -> Iterator[Reading]:
        """Yield them one by one."""
        for time_us, values in zip(self.times_us.tolist(), self.values.tolist(), strict=True):
            yield Reading(time_us, values, self.label)


def one_by_one(readings: Iterable[Reading | Readings]) -> Iterator[Reading]:
    """Yield the readings of a source that may yield many at once."""
    for one in readings:
        if isinstance(one, Readings):
            yield from one.each()
        else:
            yield one


class Answered(NamedTuple):
    """A segment as the device answered it: what `Task.outcomes` gets.

    first_us, last_us   event times of its first and last reading, microseconds
    segment             (channels, samples) float32
    outputs             (outputs,) float32: a value a class, or a target
    seq                 number of its event: which of several of one time it is
    recorded_us         the time of its first reading as the source has it: the events of a
                        recording that is repeated have later ones; of several that have one
                        time each is a microsecond later than the one before

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
    seq: int = 0
    recorded_us: int = 0


class Outcome(NamedTuple):
    """A true label that becomes known later: what `Task.outcomes` yields.

    It labels all segments of the device between the event times `first_us` and `last_us`
    (microseconds, both included) with a class index, or with one value a target. With the `seq` of
    an Answered it labels that event alone: others of the same time have other labels.

    >>> from tidewheel import Outcome
    >>> Outcome(0, 20_000, label=1.0).label
    1.0
    """

    first_us: int
    last_us: int
    label: float | Sequence[float]
    seq: int | None = None


@dataclass(frozen=True)
class Segment:
    """How readings are cut: `samples` consecutive readings, a new segment every `hop` readings.

    With classes a segment has a label when at least `label_share` of its readings carry the same
    one. With targets, and with a `label_share` of 0, its label is that of its last reading, when at
    least `label_share` of its readings have one; without a label on the last reading it has none.

    Between two of its readings are at most `max_gap_s` seconds; None: 2.5 sample periods, or any
    time where `Task.rate_hz` is None.

    >>> from tidewheel import Segment
    >>> Segment(samples=128, hop=64).label_share
    0.75
    """

    samples: int
    hop: int
    label_share: float = 0.75
    max_gap_s: float | None = None


@dataclass(frozen=True)
class Device:
    """A source of readings, and its role.

    pilot     central data; trains the first device model (and the teacher)
    lab       central data; trains the teacher
    fleet     a device of the fleet
    held-out  never trained on; candidates are evaluated on it

    Devices with the same `group` (a site, a machine type) are a cohort: the promotion gate refuses
    a candidate that is worse for a cohort. Raises TaskError for a group that is not a name.

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
class Metric:
    """A figure of merit of your own, for `Task.metric`.

    name               how it is called in tables and sentences
    of                 (outputs, labels) -> float: arrays (n, outputs) and (n, 1) or (n, targets);
                       NaN where these rows cannot tell. It runs on the server and on devices
    greater_is_better  False: an error

    >>> import numpy as np
    >>> from tidewheel import Metric
    >>> worst = Metric("worst", lambda out, true: float(abs(out - true).max()), False)
    >>> worst.of(np.array([[1.0], [4.0]]), np.array([[1.0], [2.0]]))
    2.0
    """

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    greater_is_better: bool = True


# --- how it is trained ----------------------------------------------------------------------------

STRATEGIES = (
    "fedavg", "fedprox", "fedbuff", "fedadam", "fedyogi",
    "median", "trimmed-mean", "krum", "multi-krum",
)  # fmt: skip

MINIMUM_SAMPLES = 32  # a device trains from here on


@dataclass(frozen=True)
class Privacy:
    """Central differential privacy of a device (McMahan et al. 2018, arXiv:1710.06963).

    The device clips its update to the length `clip`; the server adds noise with standard deviation
    noise_multiplier * clip to the sum. Rounds end before `epsilon` (at DELTA) of the aggregate
    would be exceeded, over all runs of the task; None: it is only reported. Counts of held-out
    segments, by which a candidate is chosen and judged, are outside of it. Needs the extra `dp`.

    >>> from tidewheel import Privacy
    >>> Privacy(clip=1.0, noise_multiplier=0.8, epsilon=8.0).clip
    1.0
    """

    clip: float
    noise_multiplier: float
    epsilon: float | None = None


@dataclass(frozen=True)
class Training:
    """How a device fine-tunes, and how the first model and the teacher are trained.

    On the device: `learning_rate`, `epochs`, `batch_size`, `optimizer`, `proximal` (FedProx's mu),
    `train_only` (names of modules; empty: all; no other is sent). `lora` has ranks by the names of
    modules, as {"body": 8}: each weight of two or more dimensions in them gets a low-rank factor,
    which is trained and sent instead and is merged into the next version; then an empty
    `train_only` names none. It keeps at most `samples` segments and 16 MB, and trains from
    MINIMUM_SAMPLES on. With `memory_mb` its trainer takes at most so much memory, by smaller
    batches whose gradients are added up, and a device that has not so much is not invited; 0: any.
    Of a recording's true labels it gets `label_share`; accuracy is measured on the others.

    On the server `strategy` makes one model of the updates. `shared` names the modules that are
    averaged, as "features"; the others stay on the device; empty: all. A run has `rounds`; a round
    ends with `devices_per_round` updates of a quarter more sampled devices; 0: all devices.
    `payload` is the type of floats on the way. `privacy` adds noise.

    Personalization: with `personal` a device may fine-tune its own copy of a release, without the
    task's augmentation, which answers only while it is better on the device's labels.

    Choice: with `choice` "device" a device keeps the version before, for at most 30
    days, while its own labels show that the served one is worse for it; with "offered" it always
    serves what the server decides.

    Central: first model and teacher are trained for `central_epochs`.

    `class_weights`: how much a row of each class counts in all these losses; empty: the same.

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
    lora: Mapping[str, int] = field(default_factory=dict)
    memory_mb: int = 0
    central_epochs: int = 20
    class_weights: tuple[float, ...] = ()
    label_share: float = 0.1
    rounds: int = 3
    samples: int = 2048
    personal: bool = False
    choice: Literal["device", "offered"] = "device"
    strategy: str = "fedavg"
    shared: tuple[str, ...] = ()
    devices_per_round: int = 0
    payload: Literal["float32", "float16"] = "float32"
    privacy: Privacy | None = None


def is_under(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor or module lies in one of `modules`, "" being the model; every one does where
    none is named."""
    return not modules or any(not m or name == m or name.startswith(f"{m}.") for m in modules)


def learns(name: str, training: Training) -> bool:
    """Whether a device trains a tensor itself. Others are the base's, or have a low-rank factor."""
    all_or_none = not (training.lora and not training.train_only)
    return all_or_none and is_under(name, training.train_only)


def travels(name: str, training: Training) -> bool:
    """Whether a round carries a tensor: devices train and share it."""
    return learns(name, training) and is_under(name, training.shared)


def is_local(name: str, training: Training) -> bool:
    """Whether a tensor is a device's own: the device trains it and does not share it."""
    return learns(name, training) and not is_under(name, training.shared)
