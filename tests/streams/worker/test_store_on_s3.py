"""Workers that share a store in a bucket and no disk: real Kafka, real processes, a real S3 API.

Each worker has folders of its own, as on two machines. A worker that stands still at a step of its
commit, loses its partitions and goes on is a zombie: its write has to be refused by the bucket.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from streams.worker.store.query import server_account
from tests.rig.processes.workers import (
    Fleet,
    all_published,
    batch,
    check_topics,
    device_on,
    fleet,
    stop,
    until,
)

pytestmark = pytest.mark.kafka
TIDEWHEEL = str(Path(sys.executable).parent / "tidewheel")
ALL = [0, 1]
LEFT, RIGHT = device_on(0), device_on(1)


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path, s3_environ: None) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path) as made:
        made.place = f"s3://models/{made.task.name}"
        yield made


def send_seconds(served: Fleet, first: int, count: int) -> None:
    """An event a second of each of two devices, which are on two partitions."""
    for device in (LEFT, RIGHT):
        for at in range(first, first + count, 5):
            served.send(batch(device, at, [at + i for i in range(5)], task=served.task))


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_zombie_changes_nothing_in_the_bucket(served: Fleet) -> None:
    zombie = served.start("w0", failpoint="worker-step-1:2:stop")
    served.ready("w0", ALL)
    sent = 0
    while not stands_still(zombie.pid):
        assert sent < 300
        before = served.count()
        send_seconds(served, sent, 10)
        sent += 10
        until(
            lambda before=before: stands_still(zombie.pid) or served.count() > before,  # type: ignore[misc]
            "a commit, or the step",
        )
    try:
        other = served.start("w1")
        served.ready("w1", ALL)
        send_seconds(served, sent, 30)
        served.wait_until_scored()
    finally:
        zombie.send_signal(signal.SIGCONT)
    send_seconds(served, sent + 30, 30)
    served.wait_until_scored()
    until(lambda: all_published(served), "all revisions are published")
    check_topics(served)
    scored = sum(count for count, _ in server_account(served.store).values())
    assert scored == 2 * (sent + 60)
    asked = ["query", "select count(*) as n from scores", "--store", str(served.store), "--json"]
    told = subprocess.run([TIDEWHEEL, *asked], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == {"n": scored}
    assert stop(other) == 0
