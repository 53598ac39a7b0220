"""The units: what systemd says of them, and their command lines, run as systemd would."""

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.ipc import ask, socket_path
from streams.contract.errors import Retryable
from streams.contract.work import AgentRequest
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import PROGRAM as INSTALLED
from tests.compose.cli.test_cli import environ_in, port_without_listener
from tests.rig.made_up.models import TINY, artifact, plain
from tests.rig.processes.running import start
from tests.rig.processes.workers import until

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "compose" / "systemd" / "tidewheel-edge@.service"
JOBS = UNIT.with_name("tidewheel-jobs.service")
PROGRAM = "/opt/tidewheel/bin/tidewheel"


def service(path: Path = UNIT) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    return unit["Service"]


def command(state: Path, environ: dict[str, str], path: Path = UNIT) -> list[str]:
    """What systemd makes of ExecStart for the device d0, of its specifiers and its variables."""
    text = service(path)["ExecStart"].replace("%i", "d0").replace("%S", str(state))
    words: list[str] = []
    for word in shlex.split(text):
        if word.startswith("${"):
            words.append(environ[word[2:-1]])
        elif word.startswith("$"):
            words += environ.get(word[1:], "").split()
        else:
            words.append(word)
    return words


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize(
    ("unit", "name"), [(UNIT, "tidewheel-edge@d0.service"), (JOBS, "tidewheel-jobs.service")]
)
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path, unit: Path, name: str) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_drop_in_at_its_head_gives_it_the_files_to_join_runs_with(tmp_path: Path) -> None:
    head = UNIT.read_text().partition("[Unit]")[0]
    lines = head.partition("hands them over.")[2].partition("# The device's state")[0].splitlines()
    drop_in = "".join(f"{line.removeprefix('#').strip()}\n" for line in lines)
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    (folder / "join.conf").write_text(drop_in)
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(PROGRAM, sys.executable))
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "tidewheel-edge@d0.service")]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    name, _, words = service(folder / "join.conf")["Environment"].strip('"').partition("=")
    asked = command(tmp_path, {"TASK": TINY, name: words.replace("%d", "/run/credentials")})
    assert asked[asked.index("--node-key") + 1] == "/run/credentials/node-key"
    assert asked[asked.index("--superlink-ca") + 1] == "/run/credentials/ca.pem"


def test_its_command_line_serves_a_device_and_drains_on_its_signal(tmp_path: Path) -> None:
    key = create_key(tmp_path / "signing.pem")
    (tmp_path / "model.twa").write_bytes(artifact(key, plain(1)))
    options = f"--model {tmp_path}/model.twa --trust {tmp_path}/signing.pub --speed 50"
    environ = {"TASK": TINY, "OPTIONS": options}
    program, *words = command(tmp_path, environ)
    assert program == PROGRAM
    words[words.index("--drain") + 1] = "0"  # there is nobody to send to
    environ["TIDEWHEEL_KAFKA"] = f"127.0.0.1:{port_without_listener()}"
    device = subprocess.Popen(
        [sys.executable, "-m", "compose.cli.main", *words], cwd=ROOT, env={**os.environ, **environ}
    )
    folder = tmp_path / "tidewheel" / "d0" / "devices" / "d0"

    def answers() -> bool:
        assert device.poll() is None
        try:
            state = ask(socket_path(folder), AgentRequest(op="state")).state
        except Retryable:
            return False
        return state is not None and state.produced > 0

    try:
        until(answers, "it answers")
        device.send_signal(signal.Signals[service()["KillSignal"]])
        assert device.wait(30) == 0
    finally:
        device.kill()
        device.wait(10)


def test_it_waits_for_the_drain_and_is_started_again() -> None:
    unit = service()
    words = unit["ExecStart"].split()
    drain_s = float(words[words.index("--drain") + 1])
    assert float(unit["TimeoutStopSec"]) >= drain_s + 30
    assert unit["Restart"] == "always"
    assert unit["RestartPreventExitStatus"] == "2"  # that of a UsageError
    assert unit["StateDirectory"] == "tidewheel/%i"  # each instance has a user of its own


def test_the_runner_of_jobs_starts_and_ends_on_its_signal(tmp_path: Path) -> None:
    program, *words = command(tmp_path, {"OPTIONS": "--max-running 2 --json"}, JOBS)
    assert program == PROGRAM
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "compose.cli.main", *words, "--until-empty"]
    assert subprocess.run(argv, cwd=ROOT, timeout=120, check=False).returncode == 0
    runner = start([INSTALLED, *words], out, environ_in(tmp_path, {}), cwd=tmp_path)
    try:
        until(lambda: signal.SIGTERM in caught_by(runner.pid), "it handles its signal")
        runner.send_signal(signal.Signals[service(JOBS)["KillSignal"]])
        assert runner.wait(60) == 0, out.read_text()
    finally:
        runner.kill()
    assert service(JOBS)["RestartPreventExitStatus"] == "2"


def caught_by(process: int) -> list[int]:
    """The signals that a process handles."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return [number for number in signal.valid_signals() if mask >> (number - 1) & 1]
