"""Connections of kafka-python's clients: sockets are closed whichever way they end, and one host
that is down keeps no client from the others."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

from streams.contract.errors import BrokerUnavailable
from streams.contract.topics import FLEET, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
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


def test_sockets_of_refused_connections_are_closed(made: list[socket.socket]) -> None:
    settings = BrokerSettings(bootstrap=f"127.0.0.1:{port_without_listener()}")
    with pytest.raises(BrokerUnavailable):
        Reader(settings, ["t"], timeout_s=0.3)
    assert closed(made)


def test_the_socket_of_a_client_that_is_closed_while_it_connects_is_closed(
    made: list[socket.socket], listening: socket.socket
) -> None:
    net = NetworkSelector()
    net.call_soon(create_connection(net, *listening.getsockname()))
    net.drain()
    assert not closed(made)
    net.close()
    assert closed(made)


def test_sockets_on_which_tls_fails_are_closed(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[socket.socket] = []
    wrap = ssl.SSLContext.wrap_socket

    def wrap_socket(self: ssl.SSLContext, *given: Any, **named: Any) -> ssl.SSLSocket:
        made = wrap(self, *given, **named)
        wrapped.append(made)
        return made

    def refuse() -> None:
        with contextlib.suppress(OSError):  # at the end
            while True:
                listening.accept()[0].close()

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_socket)
    threading.Thread(target=refuse, daemon=True).start()
    where = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(BrokerUnavailable):
        Reader(BrokerSettings(bootstrap=where, security_protocol="SSL"), ["t"], timeout_s=0.5)
    listening.shutdown(socket.SHUT_RDWR)  # the thread ends
    assert closed(wrapped)


def test_the_socket_of_a_client_that_is_closed_before_its_request_is_sent_is_closed(
    listening: socket.socket,
) -> None:
    net, ours = NetworkSelector(), socket.create_connection(listening.getsockname())
    transport = KafkaTCPTransport(net, ours)
    transport.write(b"request")
    transport.close()
    net.close()
    assert closed([ours])


@pytest.mark.kafka
def test_of_two_hosts_one_may_be_down(
    kafka: BrokerSettings, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topics(kafka, topic_specs("one-down"))
    monkeypatch.setattr("kafka.net.manager.random.choice", lambda found: found[0])
    both = BrokerSettings(bootstrap=f"{silent},{kafka.bootstrap}")
    reader = Reader(both, [topic_name("one-down", FLEET)])
    assert reader.read_to_end() == []
    reader.close()
