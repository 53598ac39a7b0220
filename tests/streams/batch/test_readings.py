"""Readings are cut as on the device, whatever the files and shards are, and have its very bits."""

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.inference.engine import Engine
from edge_client.inference.loop import InferenceLoop
from edge_client.sources.replay import Replay
from edge_client.spool.writer import Event
from streams.batch.jobs.manifest import summary_of
from streams.batch.jobs.scoring import fastest_batch
from streams.batch.sources.inputs import columns_of
from streams.batch.sources.plan import Cutter
from streams.batch.sources.readings import (
    carry_path,
    plan_readings,
    read_readings,
)
from streams.batch.specification import Named
from streams.contract.errors import UsageError
from streams.contract.events.records import EventBatch
from streams.contract.task import Reading, Task
from streams.learning.onnx_model import OnnxModel
from streams.learning.teacher import Teacher
from streams.segments.segmentation import IRREGULAR, segments_of
from streams.worker.store.delta_store import DeltaStore
from tests.rig.made_up.event_rows import event_rows
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.models import tiny
from tests.streams.batch.support import asked, model, submitted, write_csv, write_lines
from tests.streams.worker.model import LATER, Log, live

STEP_US = 50_000  # 20 readings a second
DAY_US = 1_700_000_000_000_000
CUT: dict[str, Any] = {"rows": "readings", "id": None, "label_column": None, "keep": []}


def recording(device: str, count: int, start_us: int = DAY_US) -> list[Reading]:
    """Dated readings of the tiny task, with a gap, a step back and a value that is none."""
    found = [
        Reading(start_us + one.time_us, one.values, one.label)
        for one in itertools.islice(tiny.readings(device), count)
    ]
    found[130:] = [Reading(r.time_us + 10_000_000, r.values, r.label) for r in found[130:]]
    found[201] = found[201]._replace(values=[float("nan"), 1.0])
    found[260] = found[260]._replace(time_us=found[200].time_us)
    return found


def table_of(recordings: dict[str, list[Reading]]) -> list[dict[str, Any]]:
    """Rows of all devices, one after the other in turn."""
    rows = []
    for turn in itertools.zip_longest(*recordings.values()):
        for device, reading in zip(recordings, turn, strict=True):
            if reading is not None:
                values = dict(zip(tiny.channels, reading.values, strict=True))
                named = None if reading.label is None else tiny.classes[int(reading.label)]
                rows.append({"device": device, "time": reading.time_us, **values, "label": named})
    return rows


def write_readings(path: Path, rows: list[dict[str, Any]], group: int = 37) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


SUFFIX: dict[Any, str] = {write_csv: "csv", write_lines: "jsonl", write_readings: "parquet"}


class Slots:
    def __init__(self) -> None:
        self.engine = Engine(tiny, model())


class Base:
    def engine_for(self, base: Engine) -> Engine:
        return base


def answered(device: str, readings: list[Reading], folder: Path) -> list[Event]:
    """What a device's own loop answers."""
    stop, events = threading.Event(), list[Event]()
    source = Replay(
        tiny, lambda: readings, folder, speed=0, passes=1, resume_after_us=None, stop=stop,
        skip=lambda *_: None,
    )  # fmt: skip
    loop = InferenceLoop(
        tiny, device, source, Slots(), Base(), events.append, lambda *_: None, stop, lambda: False  # type: ignore[arg-type]
    )  # fmt: skip
    loop.run()
    return events


def stored(
    events: dict[str, list[Event]], folder: Path, of: Task = tiny, teacher: Teacher | None = None
) -> list[dict[str, Any]]:
    """What a worker with this teacher stores of them."""
    log, store = Log(), DeltaStore(folder)
    for device, found in events.items():
        rows = event_rows(
            tiny, first=0, times=np.array([one.time_us for one in found]), model=found[0].model,
            outputs=np.stack([one.outputs for one in found]), labels=[one.label for one in found],
            segments=np.stack([one.segment for one in found]),
        )  # fmt: skip
        log.append(EventBatch(device, "e1", 0, rows))

    live(log, store, LATER, of=of, teacher=teacher)
    return ds.dataset(folder / "scores", format="parquet").to_table().to_pylist()


def bits(outputs: Any) -> bytes:
    return np.asarray(outputs, np.float32).tobytes()


def test_a_recording_has_the_same_bits_on_the_device_in_the_store_and_in_a_batch_job(
    tmp_path: Path,
) -> None:
    recordings = {f"d{n}": recording(f"d{n}", 400) for n in range(3)}
    path = write_readings(tmp_path / "a.parquet", table_of(recordings))
    job = submitted(tmp_path, path, to="readings", **{**CUT, "label_column": "label"})
    found = job.run()
    assert found.state == "Completed"
    assert found.shards > 5
    rows = {(row["device"], row["time"]): row for row in job.rows()}

    events = {d: answered(d, one, tmp_path / d) for d, one in recordings.items()}
    assert found.total == len(rows) == sum(map(len, events.values())) > 30
    for device, answers in events.items():
        for event in answers:
            row = rows[device, moment(event.time_us)]
            assert bits(row["outputs"]) == bits(event.outputs)
            assert row["begin"] == moment(event.first_us)
            assert row["model"] == event.model
            truth = None if event.truth is None else tiny.classes[int(event.truth[0])]
            assert row["label"] == truth
    kept = stored(events, tmp_path / "store")
    assert len(kept) == len(rows)
    for row in kept:
        assert bits(rows[row["device"], row["time"]]["outputs"]) == bits(row["outputs"])

    segments = [
        {"event": f"{d}:{one.time_us}", "segment": one.segment.ravel().tolist()}
        for d, answers in events.items()
        for one in answers
    ]
    lines = write_lines(tmp_path / "s.jsonl", segments)
    other = submitted(tmp_path, lines, to="segments", label_column=None, keep=[])
    other.run()
    assert {row["id"]: bits(row["outputs"]) for row in other.rows()} == {
        row["id"]: bits(row["outputs"]) for row in job.rows()
    }


def moment(time_us: int) -> Any:
    return pa.scalar(time_us, pa.timestamp("us", "UTC")).as_py()


def cut_by_the_device(recordings: dict[str, list[Reading]]) -> tuple[dict[Any, bytes], int]:
    broken = 0

    def skip(reason: str, _time: int) -> None:
        nonlocal broken
        broken += reason not in IRREGULAR

    found = {
        (device, last): segment.tobytes()
        for device, one in recordings.items()
        for _, last, segment, _ in segments_of(one, tiny, skip=skip)
    }
    return found, broken


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Files of readings of two devices, with gaps, steps back and values that are none."""
    time, rows = {"a": 0, "b": 0}, []
    for _ in range(draw(st.integers(0, 120))):
        device = draw(st.sampled_from("ab"))
        time[device] += draw(st.sampled_from([STEP_US] * 30 + [10**8, -STEP_US]))
        value = draw(st.sampled_from([0.1, 2.5] * 20 + [float("nan"), None]))
        rows.append({"device": device, "time": time[device], "y": value, "x": 0.25 * len(rows)})
    files: list[list[dict[str, Any]]] = [[]]
    for row in rows:
        if draw(st.integers(0, 40)) == 0:
            files.append([])
        files[-1].append(row)
    return files


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(histories(), st.integers(1, 40), st.integers(1, 30), st.sampled_from(["parquet", "jsonl"]))
def test_segments_are_those_of_the_device_wherever_files_and_shards_end(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[dict[str, Any]]],
    group: int,
    cut: int,
    kind: Any,
) -> None:
    folder = tmp_path_factory.mktemp("readings")
    schema = pa.schema(
        [("device", pa.string()), ("time", pa.int64()), ("y", pa.float64()), ("x", pa.float64())]
    )
    named = []
    for n, rows in enumerate(files):
        path = folder / f"{n}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)
        else:
            write_lines(path, rows)
        named.append(Named(name=path.name, path=str(path)))
    wanted = asked(folder, id="device", rows="readings", keep=[], label_column=None)
    columns = columns_of(tiny, kind, named, wanted)
    cutter = Cutter(kind, lambda: None, cut, cut * 60)
    base = cutter.plan(named)
    plan = plan_readings(base, tiny, kind, columns, folder, lambda *_: None)
    found: dict[Any, bytes] = {}
    broken = readings = 0
    for number in reversed(range(len(plan.shards))):  # in any order
        shard = plan.shards[number]
        file = plan.files[shard.file]
        parts = list(read_readings(tiny, kind, file, shard, columns, carry_path(folder, number)))
        assert sum(len(part) for part in parts) == shard.rows
        readings += sum(part.readings for part in parts)
        broken += sum(sum(part.broken.values()) for part in parts)
        for part in parts:
            for identity, segment in zip(part.ids or [], part.segments, strict=True):
                device, _, time = str(identity).partition(":")
                found[device, int(time)] = segment.tobytes()
    recordings: dict[str, list[Reading]] = {}
    for row in itertools.chain.from_iterable(files):
        value = float("nan") if row["y"] is None else row["y"]
        one = Reading(row["time"], [row["x"], value])
        recordings.setdefault(row["device"], []).append(one)
    assert (found, broken) == cut_by_the_device(recordings)
    assert readings == sum(map(len, files))


def test_a_file_without_a_device_is_that_of_one_device_and_times_may_be_text(
    tmp_path: Path,
) -> None:
    rows = [
        {"when": moment(one.time_us).isoformat(), "x": one.values[0], "y": one.values[1]}
        for one in recording("d0", 300)[:100]
    ]
    write_csv(tmp_path / "in" / "pump-7.csv", rows)
    job = submitted(tmp_path, tmp_path / "in", time="when", **{**CUT, "keep": ["x"]})
    assert job.run().total > 4
    first = job.rows()[0]
    assert first["device"] == "pump-7"
    assert first["time"] == moment(DAY_US + 19 * STEP_US)
    assert (first["row"], float(first["x"])) == (19, rows[19]["x"])


@pytest.mark.parametrize("write", [write_csv, write_lines, write_readings])
def test_readings_that_are_not_said_to_be_readings_are_named(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / f"in.{SUFFIX[write]}", table_of({"pump": recording("d0", 300)}))
    with pytest.raises(UsageError, match=r"no column 'segment'; it has .*need --as readings"):
        submitted(tmp_path, path, id=None, label_column=None, keep=[])


@pytest.mark.parametrize("width", [20, 3])
def test_readings_that_are_not_in_order_are_counted_and_said(tmp_path: Path, width: int) -> None:
    rows = table_of({"d0": recording("d0", 300)[: 4 * width]})
    blocks = [rows[at : at + width] for at in range(0, len(rows), width)]
    path = write_lines(tmp_path / "a.jsonl", [*itertools.chain(*reversed(blocks))])
    job = submitted(tmp_path, path, **CUT)
    found = job.run()
    assert found.broken == {"backwards": 3}
    text = "3 readings earlier than the one before of the same device: if the input is not in order"
    assert text in job.folder.report.read_text()


def test_readings_that_break_a_segment_are_counted_by_reason(tmp_path: Path) -> None:
    rows: list[Any] = table_of({"d0": recording("d0", 300)})
    rows[5]["time"] = None
    rows[50]["y"] = "wet"
    rows[51]["device"] = None
    rows[52]["label"] = "flying"
    lines = write_lines(tmp_path / "a.jsonl", [*rows[:60], b"{", *rows[60:]])
    job = submitted(tmp_path, lines, rows="readings", id=None, keep=[])
    found = job.run()
    assert found.broken == {
        "backwards": 1, "bad-time": 1, "gap": 2, "missing": 1, "not-finite": 2, "undecodable": 1,
    }  # fmt: skip
    assert found.bad_labels == 1
    assert found.examples == {
        "backwards": f"{lines}:261",
        "bad-label": f"{lines}:52: 'flying' is not a class of the task",
        "bad-time": f"{lines}:5: no event time: a timestamp, ISO text or microseconds since 1970",
        "gap": f"{lines}:131",
        "missing": f"{lines}:51: 'device' is no text or whole number",
        "not-finite": f"{lines}:50: the segment holds str",
        "undecodable": found.examples["undecodable"],
    }
    assert found.examples["undecodable"].startswith(f"{lines}:60: Expecting property name")
    assert f"|undecodable|1|{lines}:60: Expecting" in job.folder.report.read_text()
    assert found.readings == 301
    assert found.processed == found.total == len(job.rows())


@pytest.mark.parametrize(
    ("limit", "state"),
    [("2", "Failed"), ("3", "Completed"), ("0.9%", "Failed"), ("1%", "Completed")],
)
def test_more_broken_readings_than_allowed_fail_the_job_but_gaps_and_steps_back_do_not(
    tmp_path: Path, limit: str, state: str
) -> None:
    rows = table_of({"d0": recording("d0", 300)})  # with a gap, a step back, and a NaN
    rows[5]["time"] = rows[50]["y"] = None
    path = write_readings(tmp_path / "a.parquet", rows)
    job = submitted(tmp_path, path, max_errors=limit, **CUT)
    found = job.run()
    assert found.state == state
    told = f"3 readings are broken (not-finite in {path}:50: 'y' is null" in found.reason
    assert told == (state == "Failed")
    assert job.run().state == state
    assert job.run(max_errors="3").state == "Completed"


def test_labels_that_cannot_be_used_break_no_segment_and_are_said_apart(tmp_path: Path) -> None:
    rows = table_of({"d0": recording("d0", 300)})
    good = submitted(tmp_path, write_readings(tmp_path / "good.parquet", rows), to="good", **CUT)
    wanted = good.run()
    for row in rows:
        row["label"] = 7
    path = write_readings(tmp_path / "a.parquet", rows)
    job = submitted(tmp_path, path, max_errors="1", **{**CUT, "label_column": "label"})
    found = job.run()
    assert (found.state, found.processed) == ("Completed", wanted.processed)
    assert (found.broken, found.bad_labels, found.labelled) == (wanted.broken, 299, 0)  # one is NaN
    assert found.broken.keys() == {"backwards", "gap", "not-finite"}
    assert found.examples["gap"] == f"{path}:130"
    said = f"labels that cannot be used: 299 (bad-label in {path}:0: 7 is not a class of the task)"
    assert said in summary_of(found)
    assert f"- {said}" in job.folder.report.read_text()
    assert not any("labels" in line for line in summary_of(wanted))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_job_whose_readings_are_all_broken_fails(tmp_path: Path, kind: str) -> None:
    rows = table_of({"d0": recording("d0", 300)})
    for row in rows:
        row["y"] = float("nan")
    rows[7]["device"] = None
    write = {"parquet": write_readings, "jsonl": write_lines}[kind]
    path = write(tmp_path / f"a.{kind}", rows)
    found = submitted(tmp_path, path, **CUT).run()
    assert found.state == "Failed"
    assert f"300 of 300 readings are broken (not-finite in {path}:0: NaN, " in found.reason


def test_readings_that_are_too_few_or_too_far_apart_for_a_segment_are_complete(
    tmp_path: Path,
) -> None:
    rows = table_of({"d0": recording("d0", 300)[:100]})
    for n, row in enumerate(rows):
        row["time"] += 10**8 * (n // 15)
    found = submitted(tmp_path, write_readings(tmp_path / "a.parquet", rows), **CUT).run()
    assert (found.state, found.total, found.broken) == ("Completed", 0, {"gap": 6})


def test_intervals_of_event_time_share_no_segment_and_miss_none(tmp_path: Path) -> None:
    path = write_readings(tmp_path / "a.parquet", table_of({"d0": recording("d0", 300)}))
    whole = submitted(tmp_path, path, to="whole", **CUT)
    whole.run()
    edges = [None, "2023-11-14T22:13:22Z", "2023-11-14T22:13:25.5Z", None]
    parts = []
    for n, (start, stop) in enumerate(itertools.pairwise(edges)):
        job = submitted(tmp_path, path, to=f"part-{n}", start=start, until=stop, **CUT)
        found = job.run()
        assert found.excluded + found.processed == found.total == len(whole.rows())
        parts += [row["id"] for row in job.rows()]
    assert parts == [row["id"] for row in whole.rows()]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_where_selects_segments_by_their_last_reading_and_changes_no_other_answer(
    tmp_path: Path, kind: str
) -> None:
    rows = table_of({f"d{n}": recording(f"d{n}", 300) for n in range(2)})
    write = {"parquet": write_readings, "jsonl": write_lines, "csv": write_csv}[kind]
    path = write(tmp_path / f"a.{kind}", rows)
    whole = submitted(tmp_path, path, to="whole", **{**CUT, "label_column": "label"})
    unfiltered = whole.run()
    where = "x > 0 AND device = 'd1'"
    job = submitted(tmp_path, path, to="part", where=where, **{**CUT, "label_column": "label"})
    found = job.run()

    x = {(row["device"], moment(row["time"])): row["x"] for row in rows}
    wanted = [
        row for row in whole.rows()
        if row["device"] == "d1" and x["d1", row["time"]] > 0
    ]  # fmt: skip
    assert len(wanted) > 2
    assert job.rows() == wanted
    assert (found.processed, found.excluded) == (len(wanted), unfiltered.total - len(wanted))
    assert (found.readings, found.broken) == (unfiltered.readings, unfiltered.broken)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_segment_on_whose_last_reading_where_cannot_be_evaluated_is_an_error(
    tmp_path: Path, kind: str
) -> None:
    rows = table_of({"d0": recording("d0", 300)[:100]})
    for i, row in enumerate(rows):
        row["note"] = "wet" if i in (19, 21) else "7" if i % 2 else "0"
    write = write_readings if kind == "parquet" else write_lines
    whole = submitted(tmp_path, write(tmp_path / f"a.{kind}", rows), to="whole", **CUT)
    whole.run()
    options = {**CUT, "where": "note::INT > 0"}
    job = submitted(tmp_path, tmp_path / f"a.{kind}", to="part", **options)
    found = job.run()
    assert found.broken == {}
    assert found.errors == {"bad-where": 1}
    first, *others = job.rows()
    assert (first["row"], first["outputs"], first["error"]) == (19, None, "bad-where")
    assert others == whole.rows()[1:]


def test_a_job_of_readings_that_was_killed_in_its_plan_or_between_shards_goes_on(
    tmp_path: Path,
) -> None:
    path = write_readings(tmp_path / "a.parquet", table_of({"d0": recording("d0", 300)}))
    whole = submitted(tmp_path, path, to="whole", **CUT)
    whole.run()

    job, said = submitted(tmp_path, path, to="out", **CUT), list[str]()
    for _ in range(3):
        with pytest.raises(Killed):
            job.run(reached=killed_at("score-step-5"))
    assert job.run(tell=said.append, clock=itertools.count().__next__).state == "Completed"
    assert job.rows() == whole.rows()
    total, done = len(job.rows()), sum(row["error"] is None for row in job.rows())
    assert "rows/s" not in said[0]  # of this process
    assert said[-1].startswith(f"{total} of {total} rows, {total - done} errors, ")


def test_a_job_says_how_much_of_its_readings_it_has_read_before_it_scores(tmp_path: Path) -> None:
    path = write_readings(tmp_path / "a.parquet", table_of({"d0": recording("d0", 300)}))
    said = list[str]()
    submitted(tmp_path, path, **CUT).run(tell=said.append)
    parts = int(said[0].split()[-2])
    assert parts > 2
    expected = [f"reading the input: {n} of {parts} parts" for n in range(parts)]
    assert said[:parts] == expected
    assert "rows" in said[parts]


def test_a_batch_is_taken_only_if_it_has_the_bits_of_single_segments() -> None:
    engine = OnnxModel(tiny, model())
    assert fastest_batch(tiny, engine.run) > 1

    def unlike(segments: np.ndarray) -> np.ndarray:
        outputs = engine.run(segments)
        return outputs if len(segments) < 16 else np.nextafter(outputs, np.float32(9))

    assert fastest_batch(tiny, unlike) == 1
