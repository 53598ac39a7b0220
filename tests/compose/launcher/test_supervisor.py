"""The supervisor keeps processes up, says what it did, and leaves none behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.launcher import supervisor as module
from compose.launcher.broker import Launch, free_ports
from compose.launcher.supervisor import QUICK_DEATHS, QUICK_S, Supervisor, followed
from streams.contract.errors import ProcessFailed
from tests.rig.processes.flower import group_members
from tests.rig.processes.polling import until

ROOT = Path(__file__).parents[3]
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", child.pid, flush=True)
time.sleep(600)
"""


class Clock:
    """Stands in for the `time` module: it moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "logs")
    yield made
    made.stop_all()


def python(code: str) -> Launch:
    return Launch([sys.executable, "-c", code], {})


def text(supervisor: Supervisor, name: str) -> str:
    path = supervisor.log_path(name)
    return path.read_text() if path.exists() else ""


def test_what_dies_is_started_again_and_that_is_said(supervisor: Supervisor, clock: Clock) -> None:
    supervisor.start("sleeper", python("import time; print('up', flush=True); time.sleep(600)"))
    until(lambda: text(supervisor, "sleeper").count("up") == 1, "the first one is up")
    assert supervisor.check() == []
    child = supervisor.children["sleeper"]
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    child.process.wait(30)
    assert supervisor.check() == ["sleeper killed by SIGKILL; it is started again"]
    assert supervisor.check() == []  # not at once: what fails at start must not spin
    assert child.process.pid == first
    clock.now += 10
    assert supervisor.check() == []
    assert child.process.pid != first
    assert supervisor.restarts == {"sleeper": 1}
    until(lambda: text(supervisor, "sleeper").count("up") == 2, "the second one is up")
    supervisor.stop("sleeper")
    assert supervisor.restarts == {"sleeper": 1}  # the report comes after the end


def die(supervisor: Supervisor, clock: Clock, lived_s: float) -> list[str]:
    """Let the child end, which has lived for `lived_s`; what is said, and it is up again."""
    child = supervisor.children["broken"]
    child.process.wait(30)
    clock.now += lived_s
    said = supervisor.check()
    clock.now += 60
    supervisor.check()
    return said


def test_it_gives_up_after_six_quick_deaths_with_the_last_words(
    supervisor: Supervisor, clock: Clock
) -> None:
    supervisor.start("broken", python("print('one'); print('the disk is full'); exit(3)"))
    for _ in range(QUICK_DEATHS - 1):
        assert die(supervisor, clock, 0.5) == ["broken ended with code 3; it is started again"]
    with pytest.raises(ProcessFailed) as caught:
        die(supervisor, clock, 0.5)
    log = supervisor.log_path("broken")
    assert str(caught.value) == (
        f"broken ended with code 3 {QUICK_DEATHS} times: the disk is full (see {log})"
    )


def test_what_is_not_essential_and_does_not_stay_up_is_given_up_and_the_rest_goes_on(
    supervisor: Supervisor, clock: Clock
) -> None:
    supervisor.start("other", python("import time; time.sleep(600)"))
    supervisor.start("broken", python("print('no port', flush=True); exit(3)"), essential=False)
    for _ in range(QUICK_DEATHS - 1):
        assert die(supervisor, clock, 0.5)
    [line] = die(supervisor, clock, 0.5)
    assert f"broken ended with code 3 {QUICK_DEATHS} times: no port" in line
    assert line.endswith("it is given up, everything else goes on")
    assert list(supervisor.children) == ["other"]
    assert supervisor.check() == []


def test_deaths_after_a_while_are_never_too_many(supervisor: Supervisor, clock: Clock) -> None:
    supervisor.start("broken", python("exit(3)"))
    for _ in range(2 * QUICK_DEATHS):
        assert die(supervisor, clock, QUICK_S + 1)


def test_a_command_that_is_not_there_is_named(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessFailed, match=r"ghost cannot be started: there is no .*no/such"):
        supervisor.start("ghost", Launch(["/no/such/program"], {}))


def test_stop_kills_what_ignores_sigterm_and_its_children(supervisor: Supervisor) -> None:
    supervisor.start("stubborn", python(STUBBORN), stop_s=0.3)
    until(lambda: "ready" in text(supervisor, "stubborn"), "it ignores SIGTERM by now")
    group = supervisor.children["stubborn"].process.pid
    assert len(group_members(group)) == 2
    supervisor.stop("stubborn")
    assert supervisor.children == {}
    until(lambda: group_members(group) == [], "the whole group is gone")


def test_a_death_takes_the_children_left_behind_with_it(
    supervisor: Supervisor, clock: Clock
) -> None:
    supervisor.start("stubborn", python(STUBBORN))
    until(lambda: "ready" in text(supervisor, "stubborn"), "it has a child")
    child = supervisor.children["stubborn"]
    group = child.process.pid
    os.kill(group, signal.SIGKILL)
    child.process.wait(30)
    supervisor.check()
    until(lambda: group_members(group) == [], "no orphan is left")


def test_the_broker_is_ended_last(supervisor: Supervisor) -> None:
    note = (
        "import signal, sys, time\n"
        "def end(*_):\n    open(sys.argv[1], 'a').write(sys.argv[2] + ' '); raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    order = supervisor.logs / "order"
    for name in ("broker", "worker", "edge"):
        argv = [sys.executable, "-c", note, str(order), name]
        supervisor.start(name, Launch(argv, {}))
        until(lambda name=name: "ready" in text(supervisor, name), name)  # type: ignore[misc]
    supervisor.stop_all()
    ended = order.read_text().split()
    assert sorted(ended) == ["broker", "edge", "worker"]
    assert ended[-1] == "broker"


OWNER = """
import sys, time
from pathlib import Path
from compose.launcher.broker import Launch, free_ports
from compose.launcher.supervisor import Supervisor
supervisor = Supervisor(Path(sys.argv[1]))
supervisor.start("sleeper", Launch([sys.executable, "-c", "import time; time.sleep(600)"], {}))
print(supervisor.children["sleeper"].process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as owner:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        assert group_members(group) == [group]
        owner.kill()
    until(lambda: group_members(group) == [], "the child is gone")


def test_a_process_whose_parent_is_gone_already_does_not_run(tmp_path: Path) -> None:
    """The kernel sends no signal then: it would live for ever."""
    mark = tmp_path / "it-ran"
    argv = followed(["touch", str(mark)])
    argv[argv.index(str(os.getpid()))] = "1"  # somebody else's child
    assert subprocess.run(argv, check=False).returncode == 1
    assert not mark.exists()
    assert subprocess.run(followed(["touch", str(mark)]), check=False).returncode == 0
    assert mark.exists()


def test_ports_of_ours_are_not_those_that_the_system_gives_away() -> None:
    """Between the choice of a port and its use another program's connection could take it."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(free_ports(50)) < first
