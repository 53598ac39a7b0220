"""How a task is trained: on devices, in rounds, and centrally."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Strategy = Literal[
    "fedavg", "fedprox", "scaffold", "fedbuff", "fedadam", "fedyogi",
    "median", "trimmed-mean", "krum", "multi-krum",
]  # fmt: skip
STRATEGIES: tuple[str, ...] = get_args(Strategy)

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
    `train_only` (names of modules; empty: all; no other is sent). It keeps at most `samples`
    segments and 16 MB, and trains from MINIMUM_SAMPLES on. Of a recording's true labels it gets
    `label_share`; accuracy is measured on the others.

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
    central_epochs: int = 20
    class_weights: tuple[float, ...] = ()
    label_share: float = 0.1
    rounds: int = 3
    samples: int = 2048
    personal: bool = False
    choice: Literal["device", "offered"] = "device"
    strategy: Strategy = "fedavg"
    shared: tuple[str, ...] = ()
    devices_per_round: int = 0
    payload: Literal["float32", "float16"] = "float32"
    privacy: Privacy | None = None


def is_under(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor or module lies in one of `modules`, "" being the model; every one does where
    none is named."""
    return not modules or any(not m or name == m or name.startswith(f"{m}.") for m in modules)


def travels(name: str, training: Training) -> bool:
    """Whether a round carries a tensor: devices train and share it. Others are the base's."""
    return is_under(name, training.train_only) and is_under(name, training.shared)


def is_local(name: str, training: Training) -> bool:
    """Whether a tensor is a device's own: the device trains it and does not share it."""
    return is_under(name, training.train_only) and not is_under(name, training.shared)
