import pytest

from federation.rounds import fleet_reports
from federation.rounds.fleet_reports import FleetReports
from streams.contract.documents import MISSED, DeviceState
from streams.contract.errors import BrokerUnavailable
from streams.kafka.reader import Received
from tests.rig.made_up.documents import device_state

LATER_US = 1 << 60


def state(device: str, samples: int, time_us: int = LATER_US, node: int | None = None) -> Received:
    said = device_state(device, time_us=time_us, samples=samples, node=node)
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
    assert found.away == "away"
    now[0] = fleet_reports.RETRY_S
    assert found.since(0) == {"a": 5}
    assert found.away == ""
    assert attempts == [0.0, fleet_reports.RETRY_S]


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


def beat(device: str, node: int | None, heartbeat_s: float = 1.0) -> Received:
    """A state with a node, by a device whose clock is wrong."""
    said = DeviceState.decode(state(device, 5, time_us=1).value)
    value = said.replace(node=node, heartbeat_s=heartbeat_s).encode()
    return Received("t", 0, 0, device.encode(), value, [])


class Heard:
    """Reports on a clock: `said` are (second, state), read when their second has come."""

    def __init__(self, said: list[tuple[float, Received]], broker_away: float = 1e9) -> None:
        self.now, self.said, self.broker_away = 0.0, said, broker_away
        self.reports = FleetReports(lambda: self, clock=lambda: self.now)

    def poll(self, timeout_s: float = 0.5) -> list[Received]:
        if self.now >= self.broker_away:
            raise BrokerUnavailable("away")
        come = [message for at, message in self.said if at <= self.now]
        self.said = [(at, message) for at, message in self.said if at > self.now]
        return come

    def close(self) -> None:
        pass

    def silent_at(self, *seconds: float) -> list[set[int]]:
        found = []
        for self.now in seconds:
            found.append(set(self.reports.silent()))
        return found


def every(
    device: str, node: int | None, until: int, first: int = 1
) -> list[tuple[float, Received]]:
    return [(float(at), beat(device, node)) for at in range(first, until + 1)]


def test_a_device_is_silent_once_others_were_heard_for_longer_than_three_of_its_heartbeats() -> (
    None
):
    heard = Heard([*every("a", 1, 30), *every("b", 2, 4), *every("b", 2, 30, first=20)])
    found = heard.silent_at(*range(31))
    limit = round(4 + MISSED + fleet_reports.SPARE_S)
    assert found == [set()] * (limit + 1) + [{2}] * (20 - limit - 1) + [set()] * 11


def test_one_that_reports_rarely_may_be_quiet_for_longer() -> None:
    heard = Heard([*every("a", 1, 40), (1.0, beat("b", 2, heartbeat_s=10.0))])
    assert [at for at, silent in enumerate(heard.silent_at(*range(41))) if silent] == [
        *range(34, 41)
    ]


def test_when_nobody_is_heard_nobody_is_silent() -> None:
    heard = Heard([*every("a", 1, 4), *every("b", 2, 4)])
    assert heard.silent_at(*range(60)) == [set()] * 60


def test_who_is_heard_first_after_a_gap_makes_the_others_not_silent() -> None:
    heard = Heard([*every("a", 1, 4), *every("b", 2, 4), *every("a", 1, 90, first=60)])
    found = heard.silent_at(*range(90))
    assert [at for at, silent in enumerate(found) if silent] == [*range(66, 90)]


def test_a_run_that_does_not_read_for_a_while_takes_nobody_for_silent() -> None:
    heard = Heard([*every("a", 1, 90), *every("b", 2, 4), *every("b", 2, 90, first=41)])
    assert heard.silent_at(1, 2, 3, 4, 40, 41) == [set()] * 6


def test_one_that_has_fallen_silent_stays_so_while_the_others_are_rarely_heard() -> None:
    rare = [(float(at), beat("a", 1, heartbeat_s=10.0)) for at in range(20, 60, 10)]
    heard = Heard([*every("a", 1, 12), *rare, *every("b", 2, 4), (45.0, beat("b", 2))])
    found = heard.silent_at(*range(50))
    assert [at for at, silent in enumerate(found) if silent] == [*range(10, 45)]


def test_a_device_without_a_node_is_not_judged_and_one_voice_of_a_node_is_enough() -> None:
    heard = Heard([*every("a", 1, 30), *every("b", None, 4), *every("liar", 1, 4)])
    assert heard.silent_at(*range(31)) == [set()] * 31


def test_without_a_broker_nobody_is_silent() -> None:
    heard = Heard([*every("a", 1, 30), *every("b", 2, 4)], broker_away=15.0)
    found = heard.silent_at(*range(20))
    assert found[14:] == [{2}, *[set()] * 5]
