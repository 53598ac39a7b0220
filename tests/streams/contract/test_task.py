"""A task file: what is wrong with it is said in one line; how readings become segments."""

import dataclasses
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import TaskError
from streams.contract.task import (
    Privacy,
    Reading,
    Segment,
    Task,
    Training,
    check_model,
    is_local,
    load_task,
    travels,
)
from streams.contract.task.metrics import measured, metric_of, value
from streams.segments.segmentation import segments_of
from tests.rig.made_up.tiny_task import task

GOOD = Path(__file__).parents[2] / "rig" / "made_up" / "tiny_task.py"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("nothing", "write it as"),
        ("/no/such/file.py:task", "there is no file"),
        (f"{GOOD}:missing", "no attribute 'missing'"),
        (f"{GOOD}:devices", "not a Task"),
        (f"{GOOD}:RATE_HZ", "RATE_HZ is a int, not a Task"),
        ("no.such.module:task", "importing no.such.module failed"),
    ],
)
def test_a_wrong_reference_is_a_usage_error_of_one_line(reference: str, says: str) -> None:
    with pytest.raises(TaskError, match=says) as caught:
        load_task(reference)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_raises_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("task = 1 / 0\n")
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        load_task(f"{broken}:task")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "Bad Name"}, "lower-case"),
        ({"classes": ()}, "either classes"),
        ({"classes": ("one",)}, "at least two"),
        ({"targets": ("x",)}, "either classes"),
        ({"channels": ("x", "x")}, "without a repetition"),
        ({"segment": Segment(150_000, 10)}, "would not fit a message"),
        ({"segment": Segment(10, 11)}, "hop <= samples"),
        ({"window": 30.0}, "window must be Window, not 30.0"),
        ({"lateness_s": -1.0}, "lateness_s"),
        ({"latency_budget_ms": 0.0}, "latency_budget_ms must be a number above 0"),
        ({"upload": "everything"}, "upload"),
        ({"training": Training(optimizer="adam")}, "training.optimizer"),  # type: ignore[arg-type]
        ({"training": Training(proximal=-1)}, "training.proximal"),
        ({"training": Training(strategy="sgd")}, "training.strategy"),  # type: ignore[arg-type]
        ({"training": Training(strategy="fedprox")}, "needs training.proximal"),
        (
            {"training": Training(strategy="median", privacy=Privacy(1.0, 1.0))},
            "strategy median cannot be private",
        ),
        ({"build_model": None}, "build_model must be a function"),
        ({"retrain": 3.0}, "retrain must be a share from 0 to 1"),
        ({"classes": (), "targets": ("x",), "metric": "within", "retrain": 2.0}, "must be a share"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        replace(task, **change)  # type: ignore[arg-type]


def test_an_answer_may_take_the_time_between_two_segments_unless_the_task_says_otherwise() -> None:
    assert task.latency_budget_s == 0.5  # 10 samples at 20 Hz
    assert replace(task, latency_budget_ms=3.0).latency_budget_s == 0.003


def test_a_model_of_the_wrong_shape_is_named() -> None:
    def too_wide() -> object:
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(40, 7))

    check_model(task)
    with pytest.raises(TaskError, match=r"build_model gives \(2, 7\).*must give \(2, 3\)"):
        check_model(replace(task, build_model=too_wide))  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="build_teacher fails"):
        check_model(replace(task, build_teacher=too_wide))  # type: ignore[arg-type]


def made(**fields: object) -> Task:
    return replace(task, **fields)  # type: ignore[arg-type]


def steady(count: int, start: int = 0, label: float | None = 1.0) -> list[Reading]:
    return [Reading(start + i * 50_000, (float(i), -float(i)), label) for i in range(count)]


def test_modules_that_are_to_learn_must_be_there() -> None:
    check_model(replace(task, training=Training(train_only=("4",))))
    for name in ("head", "3", "4.weight"):
        with pytest.raises(TaskError, match=f"{name}'?, in which there is nothing to learn"):
            check_model(replace(task, training=Training(train_only=(name,))))


def test_modules_that_are_to_be_shared_must_be_there_and_some_trained() -> None:
    check_model(replace(task, training=Training(shared=("0",))))
    with pytest.raises(TaskError, match=r"training.shared names 'body', in which there is nothing"):
        check_model(replace(task, training=Training(shared=("body",))))
    check_model(replace(task, training=Training(train_only=("4",), shared=("0", "4"))))
    with pytest.raises(TaskError, match=r"nothing that training.train_only trains"):
        check_model(replace(task, training=Training(train_only=("4",), shared=("0",))))


@pytest.mark.parametrize(
    ("train_only", "shared", "sent", "own"),
    [
        ((), (), {"stem.w", "body.w", "body.bn.running_var", "bodywork.w", "head.w"}, set()),
        (("head",), (), {"head.w"}, set()),
        (("body",), (), {"body.w", "body.bn.running_var"}, set()),
        (("body", "head"), ("body.bn", "stem"), {"body.bn.running_var"}, {"body.w", "head.w"}),
    ],
)
def test_a_tensor_is_sent_or_a_devices_own_or_the_bases(
    train_only: tuple[str, ...], shared: tuple[str, ...], sent: set[str], own: set[str]
) -> None:
    names = {"stem.w", "body.w", "body.bn.running_var", "bodywork.w", "head.w"}
    training = Training(train_only=train_only, shared=shared)
    assert {name for name in names if travels(name, training)} == sent
    assert {name for name in names if is_local(name, training)} == own


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Reading(15 * 50_000, (float("nan"), 0.0)), "not-finite"),
        (Reading(15 * 50_000, (1.0,)), "width"),
        (Reading(3 * 50_000, (1.0, 1.0)), "backwards"),
        (Reading(90 * 50_000, (1.0, 1.0)), "gap"),
    ],
)
def test_what_breaks_a_segment_is_told(bad: Reading, reason: str) -> None:
    told: list[str] = []
    readings = [*steady(15), bad, *steady(40, start=100 * 50_000)]
    cut = list(segments_of(readings, task, skip=lambda why, _time: told.append(why)))
    assert told[0] == reason
    assert all(first >= 90 * 50_000 for first, *_ in cut)


@given(
    samples=st.integers(1, 7), hop=st.integers(1, 7), count=st.integers(0, 120),
    gaps=st.sets(st.integers(1, 119), max_size=4),
)  # fmt: skip
def test_segments_are_the_slices_of_the_readings(
    samples: int, hop: int, count: int, gaps: set[int]
) -> None:
    """Over many lengths of the buffer, with gaps anywhere."""
    small = replace(task, segment=Segment(samples, min(hop, samples)))
    period, at, readings = round(1e6 / task.rate_hz), 0, []
    for i in range(count):
        at += 10 * period if i in gaps else period
        readings.append(Reading(at, [i, -i], 0.0))
    borders = [0, *sorted(g for g in gaps if g < count), count]
    expected = [
        list(range(begin, begin + samples))
        for first, end in pairwise(borders)
        for begin in range(first, end - samples + 1, min(hop, samples))
    ]
    found = list(segments_of(readings, small))
    assert [segment[0].tolist() for _, _, segment, _ in found] == expected
    assert [(-segment[1]).tolist() for _, _, segment, _ in found] == expected
    assert all(
        (begin, end) == (readings[rows[0]].time_us, readings[rows[-1]].time_us)
        for (begin, end, _, _), rows in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("labels", "of_most", "of_the_last"),
    [
        ([1.0, 1.0, 1.0, 0.0], [1.0], [0.0]),
        ([1.0, 1.0, 0.0, 0.0], None, [0.0]),
        ([[2], [2], 2, None], [2.0], None),
        ([None, None, None, 1.0], None, [1.0]),
        ([[], [], [], []], None, None),
        ([7, 7, 7, 7], None, None),
        (["1", "1", "1", "1"], None, None),
        ([float("nan")] * 4, None, None),
    ],
)
def test_a_segment_has_the_label_of_most_of_its_readings_or_of_the_last(
    labels: list[float], of_most: list[float] | None, of_the_last: list[float] | None
) -> None:
    readings = [Reading(50_000 * i, [0, 0], label) for i, label in enumerate(labels)]
    for segment, expected in ((Segment(4, 4), of_most), (Segment(4, 4, 0.0), of_the_last)):
        [(_, _, _, found)] = segments_of(readings, replace(task, segment=segment))
        assert (None if found is None else found.tolist()) == expected


def test_a_segment_of_one_channel_stays_as_it_was_when_the_next_one_comes() -> None:
    narrow = replace(task, channels=("x",), segment=Segment(4, 2))
    readings = [Reading(50_000 * i, [i]) for i in range(200)]
    found = [segment for _, _, segment, _ in segments_of(readings, narrow)]
    assert [s.tolist() for s in found] == [[list(range(i, i + 4))] for i in range(0, 197, 2)]


anything = (
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=8)
    | st.lists(st.text(max_size=3) | st.integers(), max_size=3).map(tuple)
    | st.sampled_from(["accuracy", "rmse", "sgd", "live", len, task.segment, task.training, ()])
)  # fmt: skip


def fields_of(kind: type) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(kind))


@given(
    st.dictionaries(st.sampled_from(fields_of(Task)), anything, max_size=3),
    st.dictionaries(st.sampled_from(fields_of(Training)), anything, max_size=2),
    st.dictionaries(st.sampled_from(fields_of(Segment)), anything, max_size=2),
    st.dictionaries(st.sampled_from(fields_of(Privacy)), anything, max_size=2),
)
def test_whatever_stands_in_a_task_it_works_or_one_line_says_what_is_wrong(
    of_task: dict[str, Any],
    of_training: dict[str, Any],
    of_segment: dict[str, Any],
    of_privacy: dict[str, Any],
) -> None:
    parts: dict[str, Any] = {}
    if of_privacy:
        private = Privacy(**{"clip": 1.0, "noise_multiplier": 1.0, **of_privacy})
        of_training = {"privacy": private, **of_training}
    if of_training:
        parts["training"] = replace(task.training, **of_training)
    if of_segment:
        parts["segment"] = replace(task.segment, **of_segment)
    try:
        made = replace(task, **{**parts, **of_task})
    except TaskError as exc:
        text = str(exc)
    else:
        text = ""
    if text:
        assert "\n" not in text
        assert text.startswith("task ")
        return
    assert made.segment_shape[1] >= made.segment.hop >= 1
    assert made.max_gap_us > 0
    assert made.latency_budget_s > 0
    assert made.segments_per_window > 0
    outputs, labels = np.zeros((4, made.outputs)), np.zeros((4, made.label_size))
    assert made.agrees(outputs, outputs).shape == (4,)
    found = measured(made, outputs, labels)
    assert all(math.isfinite(value) for value in found.values())
    metric = metric_of(made)
    whole = value(made, metric, outputs, labels)
    assert math.isnan(whole) or found[metric.name] == whole
