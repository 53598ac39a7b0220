"""What is wrong with a task's fields, in one line for a person: first the kind of value that each
field takes, then what fields have to do with each other.
"""

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from streams.contract.task import channels
from streams.contract.task.extensions import choices, extensions
from streams.contract.task.metrics import NAMES, TOP, top, window_metric
from streams.contract.task.onnx_file import OnnxFile
from streams.contract.task.parts import EVEN, STRATEGIES, Metric, Privacy, Segment, Training
from streams.contract.task.windows import Window
from streams.contract.window_metrics import ERRORS

NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
PRIVATE = ("fedavg", "fedprox", "fedbuff")  # whose step is a mean, of which noise is calibrated
MAX_SEGMENT_VALUES = 200_000  # float32: 800 kB, under the brokers' default limit of 1 MB


Check = Callable[[object], str | None]  # what is wrong with a value


def number(
    least: float = -math.inf, most: float = math.inf, *,
    above: bool = False, whole: bool = False, optional: bool = False,
) -> Check:  # fmt: skip
    """A number in a range; `least` itself is allowed unless `above`."""
    kind = "a whole number" if whole else "a number"
    types = numbers.Integral if whole else numbers.Real
    span = f"above {least:g}" if above else f"from {least:g}"
    span += f" to {most:g}" if math.isfinite(most) else ""

    def check(value: object) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
            return f"must be {kind}, not {value!r}"
        found = float(value)
        if (found <= least if above else found < least) or found > most:
            return f"must be {kind} {span}, not {value!r}"
        return None

    return check


def names(value: object) -> str | None:
    right = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
    return None if right else f"must be a tuple of names, not {value!r}"


def ranks(value: object) -> str | None:
    right = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    if not isinstance(value, Mapping) or not right:
        return f"must be ranks by names of modules, not {value!r}"
    return next((found for rank in value.values() if (found := COUNT(rank))), None)


def each_of(check: Check) -> Check:
    """A tuple of numbers of one kind."""

    def checked(value: object) -> str | None:
        if not isinstance(value, tuple | list):
            return f"must be a tuple of numbers, not {value!r}"
        return next((found for one in value if (found := check(one))), None)

    return checked


def of(*types: type, optional: bool = False) -> Check:
    """A value of one of some types."""
    text = " or ".join("text" if t is str else t.__name__ for t in types)

    def check(value: object) -> str | None:
        right = isinstance(value, types) or (value is None and optional)
        return None if right else f"must be {text}, not {value!r}"

    return check


def one_of(texts: Sequence[str]) -> Check:
    """One of the texts of a Literal."""
    named = " or ".join(map(repr, texts))
    return lambda value: None if value in texts else f"must be {named}, not {value!r}"


def function(value: object) -> str | None:
    return None if callable(value) else f"must be a function, not {value!r}"


def builds(value: object) -> str | None:
    """A function that makes a model, or an OnnxFile."""
    return None if isinstance(value, OnnxFile) else function(value)


def perhaps(value: object) -> str | None:
    """The same, or None."""
    return None if value is None else builds(value)


SHARE, COUNT = number(0, 1), number(1, whole=True)
POSITIVE, SECONDS = number(0, above=True), number(0)

SEGMENT: Mapping[str, Check] = {
    "samples": COUNT,
    "hop": COUNT,
    "label_share": SHARE,
    "max_gap_s": number(0, above=True, optional=True),
}
TRAINING: Mapping[str, Check] = {
    "learning_rate": POSITIVE, "epochs": COUNT, "batch_size": COUNT, "proximal": SECONDS,
    "train_only": names, "lora": ranks, "memory_mb": number(0, whole=True),
    "central_epochs": COUNT, "class_weights": each_of(POSITIVE), "label_share": SHARE,
    "rounds": COUNT, "samples": COUNT,
    "personal": of(bool),
    "shared": names, "devices_per_round": number(0, whole=True),
    "privacy": of(Privacy, optional=True),
}  # fmt: skip
PRIVACY: Mapping[str, Check] = {
    "clip": number(), "noise_multiplier": number(), "epsilon": number(optional=True),
}  # fmt: skip
TASK: Mapping[str, Check] = {
    "name": of(str), "version": COUNT, "channels": names, "classes": names, "targets": names,
    "rate_hz": number(0, above=True, optional=True), "segment": of(Segment),
    "build_model": builds, "readings": function, "devices": function,
    "build_teacher": perhaps, "augment": perhaps,
    "outcomes": perhaps, "window": of(Window), "lateness_s": SECONDS,
    "idle_close_s": POSITIVE,
    "tolerance": SECONDS,
    "retrain": number(0, optional=True),
    "first_model": of(str, Path), "metric": of(str, Metric),
    "margin": number(), "may_trade_classes": of(bool),
    "threshold": number(0, 1), "latency_budget_ms": number(0, above=True, optional=True),
    "training": of(Training),
}  # fmt: skip


def first_problem(task: Any) -> str | None:
    """Return the first field of a Task or of its parts that cannot be right."""
    return (
        _problem(task, TASK, "")
        or _problem(task.segment, SEGMENT, "segment.")
        or _problem(task.training, TRAINING, "training.")
        or _problem(task.training.privacy, PRIVACY, "training.privacy.")
    )


def _problem(part: Any, kinds: Mapping[str, Check], prefix: str) -> str | None:
    if part is None:
        return None
    named = {
        one.name: one_of(get_args(one.type))
        for one in fields(part)
        if get_origin(one.type) is Literal
    }
    for name, check in {**kinds, **named}.items():
        if found := check(getattr(part, name)):
            return f"{prefix}{name} {found}"[:300]
    return None


def problem_of(task: Any) -> str | None:
    """The first thing wrong with a task's fields, for a person; None when all is well."""
    if found := first_problem(task):
        return found
    if not NAME.fullmatch(task.name):
        return "name must be lower-case letters, digits, - or _, and start with a letter"
    if bool(task.classes) == bool(task.targets):
        return "give either classes=(...) or targets=(...)"
    if task.classes and len(task.classes) < 2:
        return "classes needs at least two names"
    if not task.channels or len(set(task.channels)) != len(task.channels):
        return "channels must be names without a repetition"
    if found := channels.problem_of(task.channels):
        return found
    if task.segment.hop > task.segment.samples:
        return "segment needs hop <= samples"
    if len(task.channels) * task.segment.samples > MAX_SEGMENT_VALUES:
        return f"a segment holds more than {MAX_SEGMENT_VALUES} values: it would not fit a message"
    if task.answer_by == "worker" and task.upload != "segment":
        return "answer_by='worker' needs upload='segment': the worker answers from the readings"
    if isinstance(task.build_model, OnnxFile):
        given = {"first_model": task.first_model, "training.lora": task.training.lora,
                 "training.train_only": task.training.train_only}  # fmt: skip
        if name := next((name for name, value in given.items() if value), None):
            return f"{name}: an OnnxFile has its weights, and does not learn"
    if task.training.lora and task.training.shared:
        return "training.lora and training.shared: give one of them"
    if found := strategy_problem(task.training.strategy, task.training):
        return f"training.{found}"
    if found := _metric_problem(task):
        return found
    return None


def _metric_problem(task: Any) -> str | None:
    known = NAMES[bool(task.classes)]
    if isinstance(task.metric, Metric):
        return _own_metric_problem(task.metric)
    if task.metric not in ("", *known) and not 1 < top(task.metric) < len(task.classes):
        known += ("top_k with k below the number of classes",) * bool(task.classes)
        return f"metric must be a Metric or {choices('metrics', known)}, not {task.metric!r}"
    if not 0 < task.threshold < 1 or (task.threshold != EVEN and len(task.classes) != 2):
        return "threshold must be between 0 and 1, and is for tasks of two classes"
    if (task.retrain or 0) > 1 and window_metric(task) not in ERRORS:
        return "retrain must be a share from 0 to 1: windows tell one, see Task.metric"
    weights = task.training.class_weights
    if weights and len(weights) != len(task.classes):
        return f"training.class_weights must be a number above 0 for each of {task.classes}"
    return None


def _own_metric_problem(metric: Metric) -> str | None:
    if not isinstance(metric.name, str) or not NAME.fullmatch(metric.name):
        return "metric: the name of a Metric must be as a task's name is"
    if metric.name in (*NAMES[True], *NAMES[False]) or TOP.fullmatch(metric.name):
        return f"metric: {metric.name} is built in: give the Metric another name, or name it alone"
    if not callable(metric.of) or not isinstance(metric.greater_is_better, bool):
        return "metric: a Metric needs a function `of`, and greater_is_better True or False"
    return None


def strategy_problem(strategy: str, training: Training) -> str | None:
    """What is wrong with running `strategy` on a task that is trained so; None when all is well."""
    if strategy not in STRATEGIES and strategy not in extensions("strategies"):
        return f"strategy must be {choices('strategies', STRATEGIES)}, not {strategy!r}"
    if strategy == "fedprox" and not training.proximal > 0:
        return "strategy fedprox needs training.proximal above 0: the term is in the devices' loss"
    if (privacy := training.privacy) is not None:
        if strategy not in PRIVATE:
            return f"strategy {strategy} cannot be private: {', '.join(PRIVATE)} can"
        if not (privacy.clip > 0 and privacy.noise_multiplier > 0):
            return "privacy: clip and noise_multiplier must be above 0"
        if privacy.epsilon is not None and not privacy.epsilon > 0:
            return f"privacy: epsilon must be above 0, not {privacy.epsilon}"
    return None
