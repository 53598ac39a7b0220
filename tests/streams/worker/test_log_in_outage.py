"""What a worker's log has while its broker is away."""

import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from compose.launcher import broker
from tests.real_kafka import require, with_kafka
from tests.streams.worker.support import PARTITIONS, batch, fleet, until

OUTAGE_S = 20.0


@pytest.mark.kafka
def test_a_broker_that_is_away_is_a_line_a_minute_of_each_kind(tmp_path: Path) -> None:
    environ = with_kafka()
    choice = broker.choose(tmp_path / "kafka", None, environ)
    require(choice, environ)
    with ExitStack() as running:
        running.enter_context(broker.running(choice, tmp_path / "kafka", tmp_path / "broker.log"))
        with fleet(choice.settings, tmp_path) as made:
            worker = made.start()
            made.ready("w0", list(range(PARTITIONS)))
            made.send(batch("d0", 0, [1.0] * 10, task=made.task))
            made.wait_until_scored()
            before = len(made.log("w0").splitlines())
            running.close()
            until(lambda: len(made.log("w0").splitlines()) > before, "the outage is said")
            end = time.monotonic() + OUTAGE_S
            until(lambda: time.monotonic() > end or worker.poll() is not None, "it lasts")
            lines = made.log("w0").splitlines()[before:]
            kinds = [re.sub(r"^\S+ \S+ |\d+", "#", line) for line in lines if line[:2] == "20"]
            assert kinds
            assert len(kinds) == len(set(kinds)), kinds
            assert len(kinds) < 30, kinds
