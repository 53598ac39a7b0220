"""Labels from elsewhere: a back office imports them, the store joins them with their events, and
what fits nothing is parked by name and can be sent again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.reports.dead_letters import read_letters, replay
from streams.contract.topics import worker_group
from streams.kafka.admin import GroupPosition, group_positions
from streams.kafka.settings import BrokerSettings
from streams.worker.store.query import label_delay
from tests.compose.cli.test_cli import fails, tidewheel
from tests.rig.asked import asked
from tests.rig.processes.workers import (
    PARTITIONS,
    SECOND,
    Fleet,
    batch,
    fleet,
    json_events,
    until,
)

pytestmark = pytest.mark.kafka
DAY = 86_400 * SECOND
JOINED = 'select device, label[1], epoch_us(told) - epoch_us("time") from labelled order by "time"'


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, source="live", idle_close_s=0.5) as made:
        made.start()
        made.ready("w0", list(range(PARTITIONS)))
        yield made


def told(served: Fleet) -> list[tuple[str, float, int]]:
    return [row for row in asked(served.store, JOINED) if row[2] is not None]


def send(served: Fleet, topic: str, value: object, key: bytes = b"d0") -> None:
    served.producer.put(f"{served.task.id}.{topic}", key, json.dumps(value).encode(), [])


def positions(served: Fleet) -> list[GroupPosition]:
    topic = f"{served.task.id}.labels"
    return group_positions(served.broker, worker_group(served.task.id), topic)


def put_events(served: Fleet) -> None:
    """Three events of d0 as JSON with names, without labels, and two of d1 by a device."""
    rows = json_events(batch("d0", 0, [1, 2, 3]))
    send(served, "events", [row | {"event_id": f"o{i}", "label": None}
                            for i, row in enumerate(rows)])  # fmt: skip
    served.send(batch("d1", 4, [4, 5]))


def test_a_file_of_labels_is_joined_before_or_after_its_events(
    served: Fleet, tmp_path: Path
) -> None:
    words = [f"{tmp_path / 'task.py'}:task", "truth.csv", "--kafka", served.broker.bootstrap]
    (tmp_path / "truth.csv").write_text(
        "device,event_id,epoch,seq,time,label,known_us\n"
        f"d0,o0,,,,fast,{DAY}\n"
        f"d1,,e1,5,,0,{3 * DAY}\n"
        f"d1,,,,1970-01-01T00:00:04Z,1,{2 * DAY}\n"
        f"d0,o2,,,,middle,{2 * DAY}\n"
        "d0,never,,,,slow,5\n"
    )
    done = tidewheel("label", "import", *words, "--json", folder=tmp_path)
    assert json.loads(done.stdout) == {"labels": 5, "devices": 2}, done.stderr
    until(lambda: len(served.labels()) == 5, "labels wait in the store")
    put_events(served)
    wanted = [("d0", 2.0, DAY - SECOND), ("d0", 1.0, 2 * DAY - 3 * SECOND)]
    wanted += [("d1", 1.0, 2 * DAY - 4 * SECOND), ("d1", 0.0, 3 * DAY - 5 * SECOND)]
    until(lambda: told(served) == wanted, "they are joined")
    tidewheel("label", "import", *words, folder=tmp_path)
    until(lambda: len(served.labels()) == 10, "labels that come again are stored")
    assert told(served) == wanted
    until(lambda: all(at.committed == at.end for at in positions(served) if at.end), "committed")
    delay = label_delay(served.store, live=True)
    assert (delay.events, delay.labelled) == (5, 4)
    assert delay.delay_s == pytest.approx(2 * DAY / SECOND, rel=1e-3)
    counted = "4 of 5 events of the 7 days up to the newest event have a label"
    late = "; the median label came 48 h after its event"
    assert counted + late in labels_shown(served)
    live = (tmp_path / "task.py").read_text()
    (tmp_path / "task.py").write_text(live.replace("source='live'", "source='recorded'"))
    shown = labels_shown(served)  # the events' times are those of the recording
    assert counted in shown
    assert "the median label" not in shown
    assert json.loads(labels_shown(served, "--json"))["labels"] == {
        "events": 5, "labelled": 4, "delay_s": None
    }  # fmt: skip


def labels_shown(served: Fleet, *options: str) -> str:
    """What `status --labels` prints, in one line."""
    words = [f"{served.folder / 'task.py'}:task", "--kafka", served.broker.bootstrap]
    words += ["--store", str(served.store), "--labels", *options]
    return " ".join(tidewheel("status", *words, folder=served.folder).stdout.split())


def test_of_a_file_with_a_wrong_line_nothing_is_sent(served: Fleet, tmp_path: Path) -> None:
    words = [f"{tmp_path / 'task.py'}:task", "truth.csv", "--kafka", served.broker.bootstrap]
    for text, wrong in (
        ("device,event_id,label\nd0,o1,fast\nd0,o2,quick\n", "line 3: wrong-schema: label"),
        ("device,event_id,label\n,o1,fast\n", "device"),
        ("device,event_id,lable\nd0,o1,fast\n", "lable"),
        ("device,time_us,label\nd0,noon,fast\n", "line 2"),
        ("device,event_id,label\nd0,o1,fast,more\n", "line 2: more cells than columns"),
        (f"device,event_id,label\nd0,{'o' * 200_000},fast\n", "line 2: "),
        ("device,event_id,label\nd0,\xf1,fast\n", "not UTF-8"),
        ("", "the file is empty"),
    ):
        (tmp_path / "truth.csv").write_text(text, encoding="latin-1")
        fails(tidewheel("label", "import", *words, folder=tmp_path), 2, wrong)
    assert served.read("labels") == []


def test_a_misfit_is_parked_by_name_and_goes_back_to_labels(served: Fleet) -> None:
    send(served, "labels", [{"event_id": "o0", "label": "fast"}, {"label": 1}])
    until(lambda: len(served.read("dead-letters")) == 1, "it is parked")
    (letter,) = read_letters(served.broker, served.task.id)
    assert letter.reason == "wrong-schema"
    assert "[1].event_id" in letter.detail
    assert letter.source.startswith(f"{served.task.id}.labels/")
    assert served.labels() == []
    replay(served.broker, served.task.id, [letter])
    until(lambda: len(served.read("labels")) == 2, "it is back")
