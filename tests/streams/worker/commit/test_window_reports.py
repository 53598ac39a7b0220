"""Reports are counted for all windows at once: each is what its own rows say, one by one."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from streams.contract.events.compact import decode_taught
from streams.contract.events.messages import TAUGHT
from streams.contract.events.records import ScoresForm, decode_scores, score_schema
from streams.contract.task import Task
from streams.contract.topics import MAX_MESSAGE_BYTES
from streams.contract.window_report import DriftReport, WindowReport
from streams.worker.commit.messages import publications
from streams.worker.commit.window_reports import MODELS, OTHER
from streams.worker.windows.drift_watch import WindowDrift
from streams.worker.windows.rows import store_schema
from tests.rig.made_up.tiny_task import task as tiny

TARGETS = dataclasses.replace(tiny, classes=(), targets=("left", "right"), tolerance=0.7)
SQUARED = dataclasses.replace(TARGETS, metric="rmse")
REPORT = DriftReport(windows=1, segments=9, decided=False, alarm=False, worst=None, share=0.0)
TOLD = WindowDrift(reference="00ff", counts=[1, 2], report=REPORT).encode().decode()

Row = dict[str, object]


def rows_of(task: Task, windows: Sequence[tuple[str, int, int]], models: int) -> list[Row]:
    """Some rows of each (device, window, revision), in no order; a third have a label, and the last
    window has no teacher's answers."""
    noise = np.random.default_rng(3)
    found: list[Row] = []
    for number, (device, start, revision) in enumerate(windows):
        asked = number < len(windows) - 1
        for seq in range(models + number):
            outputs = noise.normal(size=task.outputs).astype(np.float32)
            teacher = noise.normal(size=task.outputs).astype(np.float32)
            label = noise.integers(0, 2, size=task.label_size).astype(np.float32)
            told = seq % 3 == 0
            found.append(
                {
                    "device": device, "epoch": "e1", "seq": 100 * number + seq, "time": start + seq,
                    "window": start, "revision": revision, "model": f"{seq % models}-aaaaaaaa",
                    "outputs": outputs.tolist(), "label": label.tolist() if told else None,
                    "teacher_model": "2-teacher" if asked else "",
                    "teacher": teacher.tolist() if asked else [], "partition": 0, "commit": 1,
                    "agrees": bool(task.agrees(outputs[None], teacher[None])[0]) if asked else None,
                    "correct": bool(task.correct(outputs[None], label[None])[0]) if told else None,
                    "day": 0, "drift": TOLD if seq == 1 else None,
                }
            )  # fmt: skip
    noise.shuffle(found)  # type: ignore[arg-type]
    return found


def published(task: Task, rows: Sequence[Row]) -> dict[tuple[str, int, int], bytes]:
    table = pa.Table.from_pylist(list(rows), store_schema())
    messages = publications(task, table)
    found = {}
    for message in messages:
        if message.topic.endswith("windows"):
            report = WindowReport.decode(message.value)
            found[report.device, report.window_us, report.revision] = message.value
    return found


@pytest.mark.parametrize("form", ["arrow", "json"])
@pytest.mark.parametrize("task", [tiny, TARGETS])
def test_scores_come_back_as_they_were_whatever_their_form(form: ScoresForm, task: Task) -> None:
    rows = rows_of(task, [("d0", 0, 0), ("d1", 0, 0)], models=3)
    for i, row in enumerate(rows):
        row["event_id"] = "\\" * i or None
    found = []
    for message in publications(task, pa.Table.from_pylist(rows, store_schema()), form):
        if message.topic.endswith("scores"):
            found += decode_scores(message.value, message.headers).to_pylist()
    wanted = pa.Table.from_pylist(rows, store_schema()).select(score_schema().names).to_pylist()
    assert sorted(found, key=lambda row: row["seq"]) == sorted(wanted, key=lambda row: row["seq"])


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_a_message_of_scores_is_under_the_brokers_limit(form: ScoresForm) -> None:
    long = {"device": "d" * 63, "epoch": "e" * 63, "model": "m" * 64, "teacher_model": "t" * 64}
    digits = [-1.2345678e-38] * tiny.outputs
    long |= {"event_id": '"' * 128, "outputs": digits, "teacher": digits, "window": 0, "day": 0}
    long |= {"time": 1, "revision": 10**9, "partition": 10**9, "commit": 2**62}
    rows = [long | {"seq": 2**60 + i, "agrees": False} for i in range(5000)]
    for message in publications(tiny, pa.Table.from_pylist(rows, store_schema()), form):
        assert len(message.value) < MAX_MESSAGE_BYTES - 50_000


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_a_device_finds_the_teachers_outputs_of_its_events_in_a_header(form: ScoresForm) -> None:
    rows = rows_of(tiny, [("d0", 0, 0), ("d0", 30_000_000, 0), ("d1", 0, 0)], models=6)
    rows = [row for row in rows if row["seq"] != 3]
    for row in rows:
        row["epoch"] = "e0" if row["seq"] in (101, 102) else "e1"
    found: dict[tuple[str, int], list[float]] = {}
    for message in publications(tiny, pa.Table.from_pylist(rows, store_schema()), form):
        taught = dict(message.headers).get(TAUGHT, b"")
        for epoch, first, outputs in decode_taught(tiny.outputs, taught, 100):
            assert message.topic.endswith("scores")
            found |= {(epoch, first + i): each for i, each in enumerate(outputs.tolist())}
    wanted = {(row["epoch"], row["seq"]): row["teacher"] for row in rows if row["teacher"]}
    assert found == wanted


WINDOWS = [("d0", 0, 0), ("d0", 30_000_000, 0), ("d0", 30_000_000, 1), ("d1", 0, 0), ("d2", 0, 0)]


@pytest.mark.parametrize("task", [tiny, TARGETS, SQUARED], ids=["classes", "mae", "rmse"])
def test_a_report_says_what_its_rows_say(task: Task) -> None:
    rows = rows_of(task, WINDOWS, models=4)
    found = published(task, rows)
    assert sorted(found) == sorted(WINDOWS)
    for key, value in found.items():
        own = [r for r in rows if (r["device"], r["window"], r["revision"]) == key]
        report = WindowReport.decode(value)
        assert report.encode() == value, "as a document writes it"
        assert (report.events, report.late) == (len(own), key[2] > 0)
        assert report.drift == REPORT
        for name, counts in report.models.items():
            of = [r for r in own if r["model"] == name]
            told = [r for r in of if r["label"] is not None]
            asked = [r for r in of if r["teacher"]]
            assert counts.events == len(of)
            assert (counts.compared, counts.labelled) == (len(asked), len(told))
            assert counts.agreeing == sum(r["agrees"] is True for r in of)
            assert counts.correct == sum(r["correct"] is True for r in of)
            if task.classes:
                answers = [n for row in counts.truth.values() for n in row.values()]
                assert sum(answers) == len(told)
                right = sum(row.get(name, 0) for name, row in counts.truth.items())
                assert right == sum(r["correct"] is True for r in of)
                assert sum(c.events for c in counts.classes.values()) == len(asked)
                assert sum(c.agreeing for c in counts.classes.values()) == counts.agreeing
            assert counts.error == pytest.approx(
                sum(error(task, r, "teacher") for r in asked), abs=1e-6
            )
            assert counts.label_error == pytest.approx(
                sum(error(task, r, "label") for r in told), abs=1e-6
            )
        assert sum(m.events for m in report.models.values()) == len(own)


def test_a_window_has_the_same_report_whatever_else_is_committed() -> None:
    rows = rows_of(tiny, WINDOWS, models=3)
    together = published(tiny, rows)
    for key in WINDOWS:
        own = [r for r in rows if (r["device"], r["window"], r["revision"]) == key]
        assert published(tiny, own) == {key: together[key]}


def test_versions_beyond_the_most_frequent_are_counted_together() -> None:
    rows = rows_of(tiny, [("d0", 0, 0)], models=MODELS + 7)
    for row in rows[:5]:
        row["model"] = "frequent-1"
    [value] = published(tiny, rows).values()
    report = WindowReport.decode(value)
    assert len(report.models) == MODELS + 1
    assert list(report.models) == sorted(report.models)
    assert report.models["frequent-1"].events == 5
    assert report.models[OTHER].events > 0
    assert sum(m.events for m in report.models.values()) == len(rows) == report.events
    assert sum(m.labelled for m in report.models.values()) == sum(
        row["label"] is not None for row in rows
    )


def numbers(values: object) -> list[float]:
    assert isinstance(values, list)
    return values


def error(task: Task, row: Row, reference: str) -> float:
    if task.classes:
        return 0.0
    away = np.array(numbers(row["outputs"])) - numbers(row[reference])
    return float(np.mean(away**2 if task is SQUARED else np.abs(away)))
