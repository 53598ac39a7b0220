"""Categories and times of events: the same numbers from a program, a line of text and a file."""

import copy
import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compose.preflight import check_task
from edge_client.sources.live import LineReadings
from federation.bootstrap.dataset import make_reference, segments_of_device
from federation.bootstrap.onnx_export import export_graph
from federation.evaluation.quantization import embeddings
from streams.batch.sources.inputs import columns_of
from streams.batch.sources.plan import Cutter
from streams.batch.sources.readings import carry_path, plan_readings, read_readings
from streams.batch.specification import InputFormat, Named
from streams.contract.errors import TaskError
from streams.contract.task import Category, Reading, Time
from streams.contract.task.channels import UNKNOWN, complete, example, numbers
from streams.contract.task.channels import given as having_values
from streams.learning import learning
from streams.learning.drift_detector import compare
from streams.learning.drift_reference import observe
from streams.segments.segmentation import segments_of
from tests.rig.made_up.payments_task import BEGAN_US, MERCHANT, WAY, task
from tests.streams.batch.support import asked

VALUES = st.none() | st.text(max_size=20) | st.integers(-(2**40), 2**40)
GIVEN = having_values(task.channels)


@given(VALUES, st.integers(2, 2**24))
def test_a_name_has_one_index_below_the_size(value: object, size: int) -> None:
    channel = Category("c", size=size)
    index = channel.index_of(value)
    assert 0 <= index < size
    assert (index == UNKNOWN) == (value in (None, ""))
    assert index == channel.index_of(None if value is None else str(value))
    assert np.float32(index) == index


def test_the_index_of_a_name_is_the_same_in_every_version() -> None:
    assert Category("merchant", size=1000).index_of("corner shop") == 221
    assert [WAY.index_of(name) for name in ("card", "cash", "voucher")] == [1, 2, UNKNOWN]
    again = copy.copy(WAY)
    assert (again, again.size, again.names) == (WAY, WAY.size, WAY.names)


@given(st.integers(0, 2**52), st.none() | st.integers(0, 10**12))
def test_a_time_is_that_of_the_calendar(time_us: int, step_us: int | None) -> None:
    at = datetime.fromtimestamp(time_us // 10**6, UTC)
    before_us = None if step_us is None else time_us - step_us
    hour, weekday, since = complete(
        (Time("hour"), Time("weekday"), Time("since")), (), time_us, before_us
    )
    assert int(hour) == at.hour
    assert weekday == at.weekday()
    assert since == (0.0 if step_us is None else pytest.approx(math.log1p(step_us / 1e6)))


@pytest.mark.parametrize(
    ("channel", "says"),
    [
        (Category("c"), "needs names, or a size"),
        (Category("c", size=2**25), "needs names, or a size"),
        (Category("c", names=("a", "a")), "has a name twice"),
        (Category("c", size=9, names=("a", "b")), "has a name twice, or names and another size"),
        (Time("minute"), "is not one of hour, weekday, since"),
    ],
)
def test_a_channel_that_cannot_be_is_named(channel: str, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        replace(task, channels=("amount", channel))


def rows_of(device: str, count: int = 200) -> list[Reading]:
    return list(task.readings(device))[:count]  # type: ignore[arg-type]


def cut(readings: object) -> list[tuple[int, list[list[float]]]]:
    return [(last, s.tolist()) for _, last, s, _ in segments_of(readings, task)]  # type: ignore[arg-type]


def test_events_of_a_program_json_and_csv_have_the_same_numbers() -> None:
    readings = rows_of("d0")
    named = [dict(zip(GIVEN, one.values, strict=True)) for one in readings]
    dated = [{"time_us": r.time_us, **n} for r, n in zip(readings, named, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["time_us", *GIVEN])
    writer.writeheader()
    writer.writerows(dated)
    wrong = lambda *_: pytest.fail("a line is passed over")  # noqa: E731
    as_json = LineReadings(task, [json.dumps(one) for one in dated], wrong)
    as_csv = LineReadings(task, text.getvalue().splitlines(), wrong)
    expected = cut(readings)
    assert expected == cut(as_json) == cut(as_csv)
    assert len(expected) == 200
    amount, shop, way = readings[7].values
    since = math.log1p((readings[7].time_us - readings[6].time_us) / 1e6)
    segment = np.array(expected[7][1])[:, 0]
    indices = numbers(GIVEN, (amount, shop, way))[1:]
    np.testing.assert_allclose(segment[:3], [amount, *indices], rtol=1e-6)
    assert segment[5] == pytest.approx(since)


def test_a_value_that_is_not_of_its_channel_is_skipped() -> None:
    skipped: list[str] = []
    wrong = [(1.0, ["a"], "card"), ("much", "a", "card"), (1.0, "a")]
    readings = [Reading(BEGAN_US + n, one) for n, one in enumerate(wrong)]  # type: ignore[arg-type]
    cuts = list(segments_of(readings, task, skip=lambda why, _: skipped.append(why)))
    assert (cuts, skipped) == ([], ["not-finite", "not-finite", "width"])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_batch_job_cuts_them_as_the_device_does(tmp_path: Path, suffix: str) -> None:
    """In shards of few rows, with the time since the reading before across their borders."""
    rows = [
        {"device": device, "time": r.time_us, **dict(zip(GIVEN, r.values, strict=True))}
        for readings in zip(*(rows_of(d) for d in ("d0", "d1")), strict=True)
        for device, r in zip(("d0", "d1"), readings, strict=True)
    ]
    table, path = pa.Table.from_pylist(rows), tmp_path / f"in.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=37)
    else:
        pyarrow.csv.write_csv(table, path)
    named = [Named(name=path.name, path=str(path))]
    kind: InputFormat = "parquet" if suffix == "parquet" else "csv"
    columns = columns_of(
        task, kind, named, asked(tmp_path, id="device", rows="readings", keep=[], label_column=None)
    )
    base = Cutter(kind, lambda: None, 37, 5000).plan(named)
    plan = plan_readings(base, task, kind, columns, tmp_path, lambda *_: None)
    assert len(plan.shards) > 3
    found = {
        identity: segment.tolist()
        for number, shard in enumerate(plan.shards)
        for part in read_readings(
            task, kind, plan.files[shard.file], shard, columns, carry_path(tmp_path, number)
        )
        for identity, segment in zip(part.ids or [], part.segments, strict=True)
    }
    assert len(found) == 400
    for device in ("d0", "d1"):
        expected = {f"{device}:{last}": s for last, s in cut(rows_of(device))}
        assert expected == {name: s for name, s in found.items() if name.startswith(device)}


def test_a_category_that_changes_is_a_drift_and_the_hour_is_not() -> None:
    usual = [segments_of_device(task, f"d{n}") for n in range(3)]
    answers = [np.zeros((len(one.labels), 2), np.float32) for one in usual]
    reference = make_reference(task, usual, answers)
    kinds = {(one.channel, one.kind) for one in reference.features}
    assert ("merchant", "category") in kinds
    assert not {channel for channel, _ in kinds} & {"hour", "weekday"}
    now = usual[0].segments.copy()
    assert not alarms(reference, now)
    now[:, 1] = MERCHANT.index_of("one shop that nobody knew")
    assert alarms(reference, now) == {"merchant"}


def alarms(reference: object, segments: np.ndarray) -> set[str]:
    seen = observe(task, segments, np.zeros((len(segments), 2), np.float32))
    counts = reference.count(seen)  # type: ignore[attr-defined]
    report = compare(reference, counts, windows=8)  # type: ignore[arg-type]
    return {one.channel for one in report.channels if one.alarm}


def test_check_and_export_take_an_embedding() -> None:
    report = check_task(task)
    assert [one for one in report.findings if one.level == "error"] == []
    assert report.model is not None
    assert report.model.parameters > 0
    segments = example(task.channels, 50, 1)
    model = learning.build_model(task).eval()
    outputs = learning.predict(model, segments)
    assert outputs.shape == (50, 2)
    assert torch.isfinite(torch.from_numpy(outputs)).all()
    graph = export_graph(task, model)
    assert embeddings(graph) == set(learning.embeddings(model)) == {"shops.weight", "ways.weight"}
