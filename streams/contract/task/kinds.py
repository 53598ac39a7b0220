"""What kind of value each field of a task takes: the first wrong one, in words for a person."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.contract.task.parts import Metric, Segment
from streams.contract.task.training import Privacy, Training


@dataclass(frozen=True)
class Number:
    """A number in a range; `least` itself is allowed unless `above`."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    whole: bool = False
    optional: bool = False

    def problem(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        kind = "a whole number" if self.whole else "a number"
        types = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
            return f"must be {kind}, not {value!r}"
        found = float(value)
        low = found <= self.least if self.above else found < self.least
        if low or found > self.most:
            return f"must be {kind} {self._range()}, not {value!r}"
        return None

    def _range(self) -> str:
        least = f"above {self.least:g}" if self.above else f"from {self.least:g}"
        return f"{least} to {self.most:g}" if math.isfinite(self.most) else least


@dataclass(frozen=True)
class Names:
    """A tuple of names."""

    def problem(self, value: object) -> str | None:
        right = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
        return None if right else f"must be a tuple of names, not {value!r}"


@dataclass(frozen=True)
class Numbers:
    """A tuple of numbers of one kind."""

    each: Number

    def problem(self, value: object) -> str | None:
        if not isinstance(value, tuple | list):
            return f"must be a tuple of numbers, not {value!r}"
        return next((found for one in value if (found := self.each.problem(one))), None)


@dataclass(frozen=True)
class Of:
    """A value of one of some types."""

    types: tuple[type, ...]
    optional: bool = False

    def problem(self, value: object) -> str | None:
        if (value is None and self.optional) or isinstance(value, self.types):
            return None
        names = " or ".join("text" if t is str else t.__name__ for t in self.types)
        return f"must be {names}, not {value!r}"


@dataclass(frozen=True)
class Function:
    """A function, or None."""

    optional: bool = False

    def problem(self, value: object) -> str | None:
        if callable(value) or (value is None and self.optional):
            return None
        return f"must be a function, not {value!r}"


Kind = Number | Numbers | Names | Of | Function

TEXT, SHARE, COUNT = Of((str,)), Number(0, 1), Number(1, whole=True)
POSITIVE, SECONDS = Number(0, above=True), Number(0)

SEGMENT: Mapping[str, Kind] = {"samples": COUNT, "hop": COUNT, "label_share": SHARE}
TRAINING: Mapping[str, Kind] = {
    "learning_rate": POSITIVE, "epochs": COUNT, "batch_size": COUNT, "proximal": SECONDS,
    "train_only": Names(), "max_steps": Number(1, whole=True, optional=True),
    "central_epochs": COUNT, "class_weights": Numbers(POSITIVE), "label_share": SHARE,
    "rounds": COUNT, "minimum_samples": COUNT, "samples": COUNT,
    "personal": Of((bool,)), "adapt_norm": Of((bool,)), "server_learning_rate": POSITIVE,
    "shared": Names(), "devices_per_round": Number(0, whole=True),
    "privacy": Of((Privacy,), optional=True), "interpolation": Number(0, 1, above=True),
}  # fmt: skip
PRIVACY: Mapping[str, Kind] = {
    "clip": Number(), "noise_multiplier": Number(), "epsilon": Number(optional=True),
}  # fmt: skip
TASK: Mapping[str, Kind] = {
    "name": TEXT, "version": COUNT, "channels": Names(), "classes": Names(), "targets": Names(),
    "rate_hz": Number(0, above=True, optional=True), "segment": Of((Segment,)),
    "build_model": Function(), "readings": Function(), "devices": Function(),
    "build_teacher": Function(optional=True), "augment": Function(optional=True),
    "outcomes": Function(optional=True), "window_s": Number(1e-3), "lateness_s": SECONDS,
    "idle_close_s": POSITIVE, 
    "max_gap_s": Number(0, above=True, optional=True), "tolerance": SECONDS,
    "retrain": Number(0, optional=True),
    "metric": Of((str, Metric)), "margin": Number(),
    "threshold": Number(0, 1), "latency_budget_ms": Number(0, above=True, optional=True),
    "training": Of((Training,)),
}  # fmt: skip


def first_problem(task: Any) -> str | None:
    """Return the first field of a Task or of its parts that cannot be right."""
    return (
        _problem(task, TASK, "")
        or _problem(task.segment, SEGMENT, "segment.")
        or _problem(task.training, TRAINING, "training.")
        or (
            None
            if task.training.privacy is None
            else _problem(task.training.privacy, PRIVACY, "training.privacy.")
        )
    )


def _problem(part: object, kinds: Mapping[str, Kind], prefix: str) -> str | None:
    for name, kind in kinds.items():
        if found := kind.problem(getattr(part, name)):
            return f"{prefix}{name} {found}"[:300]
    return None
