"""What a worker tells over HTTP, asked with real requests."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.contract.errors import UsageError
from streams.runtime.health import HealthServer, serve
from streams.worker.metrics import OTHER, REASONS, STALLED_S, Metrics

Samples = dict[tuple[str, tuple[str, ...]], float]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(clock)


@pytest.fixture
def server(metrics: Metrics) -> Iterator[HealthServer]:
    made = serve(metrics, 0)
    yield made
    made.close()


def get(server: HealthServer, path: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10)
    except urllib.error.HTTPError as exc:
        answer = exc
    with answer:
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def samples(server: HealthServer) -> Samples:
    """The numbers by name and label values, as Prometheus reads them."""
    status, kind, body = get(server, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_partitions_that_were_taken_away_are_not_told(
    metrics: Metrics, server: HealthServer
) -> None:
    metrics.lag(0, 5)
    metrics.lag(3, 7)
    metrics.buffered(rows=50, messages=4)
    found = samples(server)
    assert (found["tidewheel_lag_messages", ("0",)], found["tidewheel_lag_messages", ("3",)]) == (
        5,
        7,
    )
    metrics.forget_partitions()
    metrics.lag(3, 8)
    found = samples(server)
    lags = {labels: n for (name, labels), n in found.items() if name == "tidewheel_lag_messages"}
    assert lags == {("3",): 8}
    assert found["tidewheel_open_rows", ()] == 0


def test_a_device_that_makes_up_reasons_makes_no_more_series(
    metrics: Metrics, server: HealthServer
) -> None:
    for n in range(1000):
        metrics.dropped(f'"\n{n}' + 10_000 * "x", 2)
    metrics.dropped(OTHER, 1)
    name = "tidewheel_dropped_rows_total"
    found = {labels: n for (told, labels), n in samples(server).items() if told == name}
    assert len(found) == REASONS + 1
    assert found[OTHER,] == 2 * (1000 - REASONS) + 1
    assert sum(found.values()) == 2001


def test_it_is_ready_while_an_assignment_is_loaded(metrics: Metrics, server: HealthServer) -> None:
    assert get(server, "/ready")[::2] == (503, "no\n")
    metrics.assigned(True)
    assert get(server, "/ready")[::2] == (200, "yes\n")
    metrics.assigned(False)
    assert get(server, "/ready")[0] == 503


def test_it_is_alive_while_flushes_end_in_time(
    metrics: Metrics, server: HealthServer, clock: Clock
) -> None:
    assert get(server, "/live")[::2] == (200, "yes\n")
    clock.now_s += STALLED_S
    assert get(server, "/live")[::2] == (503, "no\n")
    metrics.flushed()
    assert get(server, "/live")[0] == 200


def test_a_client_that_says_nothing_keeps_nobody_from_an_answer(server: HealthServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert get(server, "/live")[0] == 200


def test_only_this_machine_is_answered(server: HealthServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named(server: HealthServer) -> None:
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{server.port} \(.*in use\): name another"):
        serve(Metrics(), server.port)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_what_is_no_port_is_named(port: int) -> None:
    with pytest.raises(UsageError, match=f"127.0.0.1:{port} .*0-65535"):
        serve(Metrics(), port)
