"""All brokers of a cluster move to other addresses: the clients find them by those of the start."""

import json
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from compose.launcher import broker
from streams.contract.topics import EVENTS, RELEASES, SCORES, topic_name
from streams.kafka.election import Election
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.workers import PARTITIONS, batch, encoded, fleet, until
from tests.rig.servers.kafka import require, serving, with_kafka


@pytest.mark.kafka
def test_all_clients_come_back_where_all_brokers_have_moved(tmp_path: Path) -> None:
    environ, state, log = with_kafka(), tmp_path / "state", tmp_path / "kafka.log"
    choice = broker.choose(state, None, environ)
    require(choice, environ)
    ports, (port,) = state / "broker" / "ports.json", broker.free_ports(1)
    there = {**json.loads(ports.read_text()), "broker": port}
    both = BrokerSettings.at(f"{choice.settings.bootstrap},127.0.0.1:{port}")
    there_alone = BrokerSettings.at(f"127.0.0.1:{port}")
    read: list[Received] = []

    def reads(reader: Reader, more_than: int) -> bool:
        read.extend(reader.poll())
        return len(read) > more_than

    with ExitStack() as stack:
        with serving(choice, state, log):
            made = stack.enter_context(fleet(both, tmp_path, source="live", idle_close_s=0.5))
            made.start()
            made.ready("w0", list(range(PARTITIONS)))
            reader = stack.enter_context(closing(Reader(both, [topic_name(made.task.id, SCORES)])))
            group = f"{made.task.id}-controller", topic_name(made.task.id, RELEASES)
            member = stack.enter_context(closing(Election(both, *group)))
            until(member.leads, "it leads")
            made.send(batch("d0", 0, [1, 2]))
            until(lambda: reads(reader, 0), "scores are read")
        before = len(read)
        ports.write_text(json.dumps(there))
        with serving(broker.choose(state, None, environ), state, log):
            key, value, headers = encoded(batch("d0", 2, [30, 31]))
            topic = topic_name(made.task.id, EVENTS)
            made.producer.put(topic, key, value, headers, timeout_s=60.0)
            until(lambda: reads(reader, before), "the scores of what came after are read")
            until(member.leads, "it leads again")
            with closing(Election(there_alone, *group)) as other:
                until(other.another_leads, "the group knows it")
