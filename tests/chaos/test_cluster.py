"""Brokers of a three-node cluster that are killed one after the other under load."""

import contextlib
import os
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from compose.launcher import broker
from streams.contract.topics import topic_name
from tests.chaos.test_chaos import (
    PARTITIONS,
    busy_fleet,
    chance,
    check,
    crew_of,
    load_on,
    more,
)
from tests.rig.servers.cluster import NODES, three_nodes
from tests.rig.servers.kafka import require, with_kafka

KILLS = 9
WARNINGS_A_KILL = 60  # of a worker: a lasting state is a line a minute

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def test_brokers_of_a_cluster_that_are_killed_in_turn_lose_and_double_nothing(
    tmp_path: Path,
) -> None:
    environ = with_kafka()
    choice = broker.choose(tmp_path / "choice", None, environ)
    require(choice, environ)
    assert choice.program is not None
    (tmp_path / "fleet").mkdir()
    with (
        three_nodes(tmp_path / "kafka", choice.program) as cluster,
        busy_fleet(cluster.settings, tmp_path / "fleet", PARTITIONS) as served,
        chance(served.folder) as dice,
        contextlib.ExitStack() as stack,
    ):
        crew = stack.enter_context(crew_of(served, "w0", "w1"))
        load = stack.enter_context(load_on(served, dice))
        events = topic_name(served.task.id, "events")
        with contextlib.closing(KafkaAdminClient(**cluster.settings.client_options())) as admin:
            copies = {len(p["replica_nodes"])
                      for p in admin.describe_topics([events])[0]["partitions"]}  # fmt: skip
        assert copies == {NODES}  # by default what the cluster can give
        for n in range(KILLS):
            crew.until(more(load, dice.randint(15, 60)), f"the moment of kill {n} comes")
            node = 1 + n % NODES
            cluster.kill(node)
            crew.until(more(load, dice.randint(60, 150)), "the fleet works with two nodes")
            cluster.start(node)
            crew.until(lambda node=node: cluster.answers(node), "it is back", 90.0)  # type: ignore[misc]
        check(served, crew, load)
        lines = [served.log(name).count(" WARNING ") + served.log(name).count("WARNING ")
                 for name in ("w0", "w1")]  # fmt: skip
        assert max(lines) < WARNINGS_A_KILL * (KILLS + 2), os.linesep.join(map(str, lines))
