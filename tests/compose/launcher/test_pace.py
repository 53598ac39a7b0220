"""When a replay slows down, on a machine whose load is given."""

from dataclasses import dataclass, field

from compose.launcher.progress import BUSY, SLOWEST, Finding, Pace


@dataclass
class Machine:
    """Its cores are as busy as the replay is fast, and `other` programs beside it."""

    pace_at: float
    busy_at_one: float
    other: float = 0.0
    now: float = 0.0
    found: list[Finding] = field(default_factory=list)

    until: float = float("inf")  # they end then

    def busy(self) -> float:
        return min(1.0, self.other * (self.now < self.until) + self.busy_at_one * self.pace_at)

    def run(self, *, fixed: bool = False, seconds: int = 300, learning: bool = False) -> None:
        pace = Pace(self.pace_at, self.busy, fixed=fixed, clock=lambda: self.now)
        for _ in range(seconds):
            self.now += 1.0
            if (found := pace.look(at_rest=not learning)) is not None:
                self.found.append(found)
                self.pace_at = found.speed or self.pace_at


def test_a_replay_slows_down_until_the_cores_have_time_and_says_so() -> None:
    machine = Machine(pace_at=32.0, busy_at_one=0.06)
    machine.run()
    assert [found.speed for found in machine.found] == [16.0, 8.0]
    assert "from 32 to 16 times real time" in machine.found[0].text
    assert machine.busy() < BUSY


def test_beside_other_programs_it_stops_at_the_slowest_and_says_so_once() -> None:
    machine = Machine(pace_at=32.0, busy_at_one=0.01, other=0.9)
    machine.run()
    assert [found.speed for found in machine.found] == [16.0, 8.0, 4.0, None]
    assert machine.pace_at == 32.0 * SLOWEST


def test_a_speed_that_the_user_has_named_stays_and_the_load_is_said_once() -> None:
    machine = Machine(pace_at=32.0, busy_at_one=0.06)
    machine.run(fixed=True)
    assert [found.speed for found in machine.found] == [None]
    assert "--speed" in machine.found[0].text


def test_a_machine_with_time_left_and_one_that_learns_are_left_alone() -> None:
    idle, learning = Machine(32.0, 0.01), Machine(32.0, 0.06)
    idle.run()
    learning.run(learning=True)
    assert idle.found == learning.found == []


def test_when_other_programs_have_ended_the_first_speed_comes_back_and_no_more() -> None:
    machine = Machine(pace_at=32.0, busy_at_one=0.01, other=0.9, until=150.0)
    machine.run()
    assert [found.speed for found in machine.found] == [16.0, 8.0, 4.0, None, 8.0, 16.0, 32.0]
    assert "speeds up from 16 to 32 times real time" in machine.found[-1].text
