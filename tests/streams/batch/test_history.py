"""What lies on `events` is scored once, in a range that is frozen, or refused by name."""

import asyncio
import dataclasses
import itertools
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from streams.batch.history.cutting import cut
from streams.batch.history.events import event_rows
from streams.batch.history.topic import refuse_gone
from streams.batch.jobs.job import Job, submit
from streams.batch.jobs.job_folder import JobFolder, Models
from streams.batch.jobs.submission import Request, specify
from streams.batch.records.documents import PlannedFile, Selection
from streams.batch.records.progress import Manifest
from streams.batch.sources.inputs import Wanted
from streams.batch.sources.stored import stored_inputs
from streams.contract.artifact import Artifact
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop
from streams.contract.events.records import EventBatch
from streams.contract.task import Task
from streams.contract.topics import TopicSpec, topic_name
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from streams.learning.onnx_model import OnnxModel
from streams.learning.teacher import teacher_of
from streams.runtime.failpoints import unarmed
from streams.worker.commit.committer import Committer
from streams.worker.store.delta_store import DeltaStore
from streams.worker.windows.task_versions import TaskVersions
from tests.edge_client.models import TINY, tiny
from tests.streams.batch.support import model, model_bytes, rows_of, small
from tests.streams.batch.test_teacher import TOLERANCE, Mixing, teacher
from tests.streams.worker.commit.test_committer import records
from tests.streams.worker.model import Log
from tests.streams.worker.support import SECOND, batch, encoded, labels

PAGE = Path(__file__).parents[3] / "docs" / "architecture" / "batch.md"
Record = EventBatch | Drop | LabelBatch | None  # None: garbage


def received(found: list[Record], topic: str = "tiny.events") -> list[Received]:
    messages = []
    for offset, record in enumerate(found):
        key, value, headers = (b"x", b"garbage", []) if record is None else encoded(record)
        messages.append(Received(topic, 0, offset, key, value, headers))
    return messages


file = PlannedFile(
    name="tiny.events/0", path="kafka:tiny.events/0", sha256="", bytes=0, modified="", rows=0
)


@settings(max_examples=100)
@given(
    st.lists(records, max_size=12),
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(0, 60)),
    st.one_of(st.none(), st.integers(0, 60)),
)
def test_every_event_in_the_range_is_a_row_once_wherever_shards_end(
    history: list[Record], most: int, start: int | None, stop: int | None
) -> None:
    selection = Selection(
        time="time",
        from_us=None if start is None else start * SECOND,
        to_us=None if stop is None else stop * SECOND,
    )
    messages = received(history)
    shards, _ = cut(tiny, 0, messages, selection, lambda: None, most)
    low = -1 if start is None else start * SECOND
    high = 2**60 if stop is None else stop * SECOND
    expected = {}
    for record in history:
        if isinstance(record, EventBatch):
            for row in record.rows.to_pylist():
                key = f"{record.device}/{record.epoch}/{row['seq']}"
                expected.setdefault(key, row)
    wanted = {k: r for k, r in expected.items() if low <= moment_us(r["time"]) < high}
    found: list[Any] = []
    broken, first = 0, 0
    for before, shard in itertools.pairwise([None, *shards]):
        assert shard is not None
        assert before is None or before.stop <= shard.start
        assert shard.first_row == first
        parts = list(event_rows(tiny, messages[shard.start : shard.stop], file, shard, selection))
        assert sum(len(part) + part.excluded for part in parts) == shard.rows
        for part in parts:
            broken += len(part.problems)
            good = [i for i in range(len(part)) if i not in part.problems]
            assert part.ids is not None
            found += [(part.ids[i], part.segments[i]) for i in good]
        first += shard.rows
    assert [name for name, _ in found] == list(dict.fromkeys(name for name, _ in found))
    assert {name for name, _ in found} == set(wanted)
    for name, segment in found:
        assert segment.ravel().tolist() == wanted[name]["segment"]
    if start is stop is None:
        assert broken == history.count(None)


def moment_us(time: Any) -> int:
    return round(time.timestamp() * SECOND)


def test_messages_that_are_others_than_those_of_the_plan_are_refused() -> None:
    messages = received([batch("d0", 0, [1.0, 2.0]), batch("d1", 0, [1.0])])
    (shard,), _ = cut(tiny, 0, messages, Selection(time="time"), lambda: None, 100)
    others = received([batch("d0", 1, [1.0, 2.0]), batch("d1", 0, [1.0])])
    with pytest.raises(TidewheelError, match=r"tiny\.events/0 has other messages"):
        list(event_rows(tiny, others, file, shard, Selection(time="time")))
    with pytest.raises(TidewheelError, match=r"begins with offset 1 now.*retention"):
        refuse_gone("tiny.events", 0, 0, 2, (1, 2))
    with pytest.raises(TidewheelError, match="ends with offset 1 now"):
        refuse_gone("tiny.events", 0, 0, 2, (0, 1))
    refuse_gone("tiny.events", 0, 0, 0, (1, 2))


# --- a broker -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Topic:
    """A topic of this test's own, of one partition, and jobs that score it."""

    broker: BrokerSettings
    task: Task
    place: Path

    @property
    def name(self) -> str:
        return topic_name(self.task.name, "events")

    def send(self, found: list[Record]) -> None:
        producer = Producer(self.broker)
        for record in found:
            key, value, headers = (b"x", b"garbage", []) if record is None else encoded(record)
            producer.put(self.name, key, value, headers)
        producer.close()

    def forget(self, before: int) -> None:
        """Retention passes over all messages before an offset."""
        admin = KafkaAdminClient(**self.broker.client_options())
        admin.delete_records({TopicPartition(self.name, 0): before})
        admin.close()

    def job(
        self, to: str, taught: Artifact | None = None, data: bytes = b"", **wanted: Any
    ) -> JobFolder:
        job = wanted.pop("job", None)
        output = str(self.place / to)
        request = Request(TINY, [], output, Wanted(**wanted), rows="events", job=job)
        specification = specify(self.task, taught or model(), request, lambda: self.broker)
        submit(request.folder, specification, Models(data or model_bytes()), unarmed)
        return request.folder

    def run(self, folder: JobFolder, **more: Any) -> Manifest:
        options = {"cutter": small(8), "broker": lambda: self.broker, **more}
        return Job(folder, self.task, **options).run()


@pytest.fixture
def topic(tmp_path: Path, kafka: BrokerSettings) -> Topic:
    task = dataclasses.replace(tiny, name=f"t-{tmp_path.name[-30:]}", build_teacher=Mixing)
    ensure_topics(kafka, [TopicSpec(topic_name(task.name, "events"), 1, "delete", -1)])
    return Topic(kafka, task, tmp_path)


def history() -> list[Record]:
    """Two devices' events of 40 s, some of them sent twice, with drops, labels and garbage."""
    found: list[Record] = []
    for n in range(8):
        for device in ("d0", "d1"):
            found.append(batch(device, 5 * n, [5.0 * n + i for i in range(5)]))
    found[6:6] = [found[2], None, Drop("d0", "e1", 90, 95, "full"), labels("d1", 0, [(1, 2)])]
    return found


@pytest.mark.kafka
def test_the_frozen_range_is_scored_once_over_kills_and_by_several_processes(
    topic: Topic,
) -> None:
    topic.send(history())
    folder = topic.job("out")
    topic.send([batch("d2", 0, [1.0])])  # after the job was submitted

    class Crash(BaseException):
        pass

    points = itertools.count()

    def killed(point: str) -> None:
        if point == "score-step-4" and next(points) == 2:
            raise Crash

    with pytest.raises(Crash):
        topic.run(folder, reached=killed)
    found = topic.run(folder)
    assert found.state == "Completed", found.reason
    assert found.shards > 5
    assert (found.total, found.excluded, found.errors) == (86, 5, {"undecodable": 1})
    rows = rows_of(topic.place / "out")
    events = {f"{r.device}/{r.epoch}/{r.first + i}": r.rows.slice(i, 1).to_pylist()[0]
              for r in history() if isinstance(r, EventBatch) for i in range(5)}  # fmt: skip
    good = [row for row in rows if row["error"] is None]
    assert [row["id"] for row in good] == list(events)
    engine = OnnxModel(tiny, model())
    for row in good:
        event = events[row["id"]]
        segment = np.array(event["segment"], np.float32).reshape(1, *tiny.segment_shape)
        assert row["outputs"] == pytest.approx(engine.run(segment)[0].tolist(), abs=1e-6)
        assert (row["seq"], row["time"]) == (event["seq"], event["time"])
        truth = event["label"]
        assert row["label"] == (None if truth is None else tiny.classes[int(truth[0])])
    (broken,) = [row for row in rows if row["error"]]
    assert broken["id"] == f"{topic.name}/0:7"

    shared = topic.job("shared")
    assert topic.run(shared, processes=2).total == 87
    assert [r["id"] for r in rows_of(topic.place / "shared")][:-1] == [r["id"] for r in rows]


@pytest.mark.kafka
def test_a_teacher_scores_history_again_as_the_worker_has_stored_it(topic: Topic) -> None:
    log, store = Log(), DeltaStore(topic.place / "store")
    for record in history():
        if record is not None:
            log.append(record)
    topic.send([record for record in history() if record is not None])

    async def live() -> None:
        made = Committer(
            TaskVersions(topic.task), [teacher_of(topic.task, teacher()[0], "test")], store, log,
            now_us=lambda: 0, failpoint=unarmed,
        )  # fmt: skip
        await made.assign(0)
        for offset in range(len(log.messages)):
            made.receive(log.incoming(offset), offset, 0.0)
        await made.flush(1e9)

    asyncio.run(live())
    stored = ds.dataset(topic.place / "store" / "scores", format="parquet").to_table().to_pylist()
    folder = topic.job("out", *teacher(), start="1970-01-01T00:00:10Z", stop="1970-01-01T00:00:30Z")
    found = topic.run(folder)
    assert found.state == "Completed", found.reason
    mine = {(row["device"], row["epoch"], row["seq"]): row for row in rows_of(topic.place / "out")}
    wanted = {
        (row["device"], row["epoch"], row["seq"]): row["teacher"]
        for row in stored
        if 10 <= row["time"].timestamp() < 30
    }
    assert mine.keys() == wanted.keys()
    assert len(wanted) == 40
    for key, outputs in wanted.items():
        assert mine[key]["outputs"] == pytest.approx(outputs, abs=TOLERANCE)


@pytest.mark.kafka
def test_two_revisions_are_compared_by_the_documented_query(topic: Topic) -> None:
    topic.send(history())
    old, new = (
        topic.job("all.duckdb", *named, start="1970-01-01", job=topic.place / f"{n}.job")
        for n, named in enumerate([(), teacher()])
    )
    for folder in (old, new):
        assert topic.run(folder).state == "Completed"
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)
    ids = {"OLD": old.specification().id, "NEW": new.specification().id}
    for name, identity in ids.items():
        query = query.replace(f"'{name}'", f"'{identity}'")
    with closing(duckdb.connect(str(topic.place / "all.duckdb"), read_only=True)) as connection:
        found = connection.sql(query).fetchall()
        (rows,) = connection.sql("SELECT count(*) FROM scores").fetchall()
    assert sum(row[2] for row in found) == 80
    assert rows == (2 * 81,)
    assert all(0 <= row[3] <= 1 for row in found if row[3] is not None)


@pytest.mark.kafka
def test_retention_that_passes_over_a_jobs_range_is_refused_by_name(topic: Topic) -> None:
    topic.send(history())
    folder = topic.job("out")

    def begun() -> bool:
        return len(list((topic.place / "out").glob("part-*"))) > 1

    assert topic.run(folder, stopping=begun).state == "Stopped"
    plan = folder.plan()
    assert plan is not None
    missing = folder.missing(plan, folder.specification())
    topic.forget(plan.shards[missing[0]].start)  # what is missing is still there
    assert topic.run(folder, stopping=lambda: True).state == "Stopped"
    topic.forget(plan.shards[missing[0]].start + 1)
    with pytest.raises(UsageError, match=rf"{topic.name} partition 0 begins with .* retention"):
        topic.run(folder)
    early = topic.job("early")
    topic.forget(plan.shards[missing[0]].start + 2)
    found = topic.run(early)
    assert found.state == "Failed"
    assert "retention has passed over them" in found.reason


@pytest.mark.kafka
def test_what_cannot_be_scored_of_history_is_said_before_the_job_exists(topic: Topic) -> None:
    def refused(text: str, task: Task = topic.task, broker: Any = lambda: topic.broker) -> None:
        request = Request(TINY, inputs, str(topic.place / "out"), wanted, rows="events")
        with pytest.raises(UsageError, match=text):
            specify(task, model(), request, broker)

    inputs, wanted = list[str](), Wanted()
    refused("its events have no segments", dataclasses.replace(topic.task, upload="prediction"))
    refused("needs a broker", broker=None)
    wanted = Wanted(keep=["site"])
    refused("--keep: --input-topic has the columns of events")
    inputs, wanted = ["a.parquet"], Wanted()
    refused("--input-topic is read alone")
    assert not (topic.place / "out.job").exists()


def test_a_store_is_no_input_because_it_keeps_no_segments(tmp_path: Path) -> None:
    DeltaStore(tmp_path / "store")
    with pytest.raises(UsageError, match=r"the store keeps no segments.*--input-topic"):
        stored_inputs([], tmp_path / "store", topic=False)
    with pytest.raises(UsageError, match="it is no store"):
        stored_inputs([], tmp_path, topic=False)
    for named, store, topic in ((["a"], tmp_path, False), ([], None, False), (["a"], None, True)):
        with pytest.raises(UsageError, match="name one input"):
            stored_inputs(named, store, topic=topic)
    assert stored_inputs(["a"], None, topic=False) == ["a"]
