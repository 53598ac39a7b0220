"""`tidewheel console` as a process: it waits for a broker, says what is wrong in one line, and ends
cleanly."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compose.dashboard.web.settings import ConsoleSettings
from streams.kafka.settings import BrokerSettings

TINY = Path(__file__).parents[2] / "fakes" / "tiny_task.py"


@contextmanager
def started(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A console without a broker, and its address."""
    command = [sys.executable, "-m", "compose.cli.main", "console", f"{TINY}:task", "--state", "st"]
    with (folder / "err").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--kafka", "127.0.0.1:1", "--port", "0", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+?(?=;)", line)
        assert found, (line, (folder / "err").read_text())
        yield process, found[0]
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def status(address: str, path: str) -> int:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            assert time.monotonic() < deadline


@pytest.mark.usefixtures("executed")
def test_without_a_broker_it_lives_and_ends_cleanly(tmp_path: Path) -> None:
    with started(tmp_path) as (process, address):
        assert status(address, "/live") == 200
        assert status(address, "/ready") == 503
        assert process.stdout is not None
        assert process.stdout.readline() == "connecting to Kafka at 127.0.0.1:1\n"
        deadline = time.monotonic() + 20
        while "Kafka is not reached: " not in (tmp_path / "err").read_text():
            assert time.monotonic() < deadline, "the reason"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert not (tmp_path / ".nicegui").exists()
    assert not (tmp_path / "st").exists()  # it keeps nothing


def test_on_all_addresses_it_says_one_that_works_and_that_everyone_can_read(tmp_path: Path) -> None:
    with started(tmp_path, "--host", "0.0.0.0") as (process, address):
        assert "0.0.0.0" not in address
        assert status(address, "/api/overview") == 200
        port = address.rpartition(":")[2]
        for name in ("127.0.0.1", "localhost", socket.gethostname()):
            assert status(f"http://{name}:{port}", "/live") == 200
        assert process.stdout is not None
        assert "Everyone who can reach this port can read everything" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_command_to_copy_has_what_the_console_was_started_with() -> None:
    settings = ConsoleSettings(
        BrokerSettings(bootstrap="k:1"), Path("st"), "t.py:task", ("--state", "st"), "k:1"
    )
    promote = settings.command("models promote", "2-b c")
    assert promote == "tidewheel models promote t.py:task '2-b c' --state st"
    train = settings.command("train", topics=True)
    assert train == "tidewheel train t.py:task --state st --kafka k:1"


def test_a_port_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".tidewheel").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "compose.cli.main", "console", f"{TINY}:task", "--port", port],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line
    assert "--port" in line
