import pytest

from federation.rounds import fleet_reports
from federation.rounds.fleet_reports import FleetReports
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable
from streams.kafka.reader import Received

LATER_US = 1 << 60


def state(device: str, samples: int, time_us: int = LATER_US) -> Received:
    said = DeviceState(
        device=device,
        task="tiny",
        time_us=time_us,
        epoch="e",
        active="",
        produced=0,
        delivered=0,
        pending=0,
        samples=samples,
    )
    return Received("t", 0, 0, device.encode(), said.encode(), [])


class FakeFollower:
    """Gives one batch a poll; None is a broker that is away."""

    def __init__(self, batches: list[list[Received] | None]) -> None:
        self.batches, self.closed = batches, False

    def poll(self, timeout_s: float = 0.5) -> list[Received]:
        batch = self.batches.pop(0) if self.batches else []
        if batch is None:
            raise BrokerUnavailable("away")
        return batch

    def close(self) -> None:
        self.closed = True


def test_the_most_that_a_device_said_since_counts() -> None:
    batches = [[], [state("a", 5, 10), state("a", 9, 20)], [state("a", 7, 30), state("b", 3, 19)]]
    assert FleetReports(lambda: FakeFollower([*batches])).since(20) == {"a": 9}


def test_what_was_read_for_one_round_is_not_read_again() -> None:
    found = FleetReports(lambda: FakeFollower([[], [state("a", 5)]]))
    assert found.since(0) == {"a": 5}
    assert found.since(0) == {}


def test_records_that_are_none_are_passed_over() -> None:
    broken = Received("t", 0, 0, b"a", b"{", [])
    gone = Received("t", 0, 0, b"a", None, [])
    assert FleetReports(lambda: FakeFollower([[], [broken, gone, state("b", 1)]])).since(0) == {
        "b": 1
    }


def test_a_broker_that_is_away_gives_no_figures_and_is_asked_again_later() -> None:
    now, followers = [0.0], [FakeFollower([None]), FakeFollower([[state("a", 5)]])]
    attempts: list[float] = []

    def connect() -> FakeFollower:
        attempts.append(now[0])
        return followers.pop(0)

    found = FleetReports(connect, clock=lambda: now[0])
    now[0] = 1.0
    assert found.since(0) == {}
    now[0] = fleet_reports.RETRY_S
    assert found.since(0) == {"a": 5}
    assert attempts == [0.0, fleet_reports.RETRY_S]


def test_a_broker_that_cannot_be_reached_stops_no_run() -> None:
    def connect() -> FakeFollower:
        raise BrokerUnavailable("no broker")

    found = FleetReports(connect)
    assert found.since(0) == {}
    found.close()


@pytest.mark.parametrize("busy", [True, False])
def test_a_topic_that_never_rests_is_not_read_for_ever(busy: bool) -> None:
    now = [0.0]

    class Busy(FakeFollower):
        def poll(self, timeout_s: float = 0.5) -> list[Received]:
            now[0] += 1
            return [state("a", 5)] if busy else []

    assert FleetReports(lambda: Busy([]), clock=lambda: now[0]).since(0) == (
        {"a": 5} if busy else {}
    )
