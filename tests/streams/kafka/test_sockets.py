"""Sockets of kafka-python's clients are closed whichever way their connections end."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

from streams.contract.errors import BrokerUnavailable
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.compose.cli.test_cli import port_without_listener


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets of the library's connections."""
    found: list[socket.socket] = []

    def make(self: KafkaNetSocket, *given: int) -> socket.socket:
        found.append(socket.socket(*given))
        return found[-1]

    monkeypatch.setattr(KafkaNetSocket, "socket", make)
    return found


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def closed(sockets: list[socket.socket]) -> bool:
    return bool(sockets) and all(made.fileno() == -1 for made in sockets)


def test_of_connections_that_are_refused(made: list[socket.socket]) -> None:
    settings = BrokerSettings(bootstrap=f"127.0.0.1:{port_without_listener()}")
    with pytest.raises(BrokerUnavailable):
        Reader(settings, ["t"], timeout_s=0.3)
    assert closed(made)


def test_of_a_client_that_is_closed_while_it_connects(
    made: list[socket.socket], listening: socket.socket
) -> None:
    net = NetworkSelector()
    net.call_soon(create_connection(net, *listening.getsockname()))
    net.drain()
    assert not closed(made)
    net.close()
    assert closed(made)


def test_of_a_client_that_is_closed_before_its_request_is_sent(listening: socket.socket) -> None:
    net, ours = NetworkSelector(), socket.create_connection(listening.getsockname())
    transport = KafkaTCPTransport(net, ours)
    transport.write(b"request")
    transport.close()
    net.close()
    assert closed([ours])
