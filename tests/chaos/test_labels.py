"""Labels that became known later, over kills of the device and of the worker: each is in the store
once, and labels its event."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import LABELS, queue_folder
from streams.kafka.settings import BrokerSettings
from tests.rig.asked import asked
from tests.rig.processes.edge import Edge
from tests.rig.processes.workers import Fleet, fleet, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
KILLS = 12
OUTCOMES = """

def outcomes(device, answered):
    from tidewheel import Outcome
    for one in answered:
        yield Outcome(one.last_us, one.last_us, int(one.last_us // 1000) % 3)

task = dataclasses.replace(task, outcomes=outcomes)
"""


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, 1) as made:
        path = tmp_path / "task.py"
        path.write_text(path.read_text() + OUTCOMES)
        yield made


@pytest.fixture
def edge(served: Fleet, tmp_path: Path) -> Iterator[Edge]:
    made = Edge(served, "labelled", tmp_path / "state")
    yield made
    made.end()


def queue_of(edge: Edge) -> Path:
    return queue_folder(edge.device_folder, LABELS, edge.served.task)


def sent(edge: Edge, count: int) -> bool:
    return bool(edge.running()) and edge.state.late_labels.get("delivered", 0) >= count


def stored(served: Fleet) -> list[tuple[str, int]]:
    return asked(served.store, "select epoch, number from labels")


def test_each_label_is_stored_once_when_device_and_worker_are_killed(
    served: Fleet, edge: Edge
) -> None:
    served.start("w0", failpoint="worker-step-2:4")
    served.ready("w0", [0])
    for point in ("label-step-1:3", "label-step-2:3"):
        edge.start(served.broker, "--speed", "100", failpoint=point)
        edge.dies()
    dice = random.Random(1)
    for _ in range(KILLS):
        edge.start(served.broker, "--speed", "100")
        edge.goes_on(dice.randrange(1, 12))
        edge.kill()
    until(lambda: served.workers[0].poll() is not None, "the worker is dead")
    served.start("w1")
    edge.start(served.broker, "--speed", "100")
    edge.goes_on()
    until(lambda: sent(edge, 100), "labels are sent")
    edge.stop()
    edge.check()
    queue = Spool(queue_of(edge))
    account = queue.account()
    assert (account.delivered, account.dropped, account.pending) == (account.produced, {}, 0)
    wanted = [(queue.epoch, number) for number in range(account.produced)]
    until(lambda: len(stored(served)) >= len(wanted), "all labels are stored", 120)
    assert sorted(stored(served)) == wanted
    [(labelled, wrong)] = asked(
        served.store,
        "select count(label), count(*) filter ("
        "  source = 'outcome' and label[1] <> (epoch_us(\"time\") // 1000) % 3"
        ") from labelled",
    )
    assert wrong == 0
    assert labelled >= len(wanted) * 0.9  # those of answers that a kill took from memory are alone
