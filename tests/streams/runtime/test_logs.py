"""A lasting state is a line a minute, whatever reports it and how often; nothing else is left
out."""

import io
import logging
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.runtime.process import EVERY_S, KINDS, handler, rotate
from tests.rig.processes.workers import until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A handler on a logger of its own, with a clock of the test."""

    def __init__(self) -> None:
        self.stream, self.clock = io.StringIO(), Clock()
        self.handler = handler(self.stream, self.clock)
        self.handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def say(self, name: str, level: int, text: str, *words: object) -> None:
        self.handler.handle(logging.LogRecord(name, level, __file__, 1, text, words, None))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_line_when_it_begins_one_a_minute_and_one_when_it_is_over() -> None:
    """As with brokers that are away for 4 minutes, and 11 warnings a second."""
    log = Log()
    for tick in range(2640):
        log.clock.now = tick / 11
        node = tick % 3
        log.say("aiokafka.conn", logging.WARNING, "Unable to connect to node with id %s", node)
    log.say("tidewheel", logging.INFO, "ready")
    assert log.lines[0] == "WARNING aiokafka.conn: Unable to connect to node with id 0"
    assert log.lines[1].endswith("(659 more like this in 60 s)")
    assert log.lines[-1] == "INFO tidewheel: ready"
    assert log.lines[-2].endswith("(659 more like this in 60 s)")
    assert len(log.lines) == 5


def test_the_same_error_every_ten_seconds_is_a_line_a_minute() -> None:
    """Also where figures in it change, as in the cause of a run that cannot start."""
    log = Log()
    for tick in range(13):
        log.clock.now = 10.0 * tick
        text = "a run is due (agreement 0.%d in %d events) but could not start: no SuperLink"
        log.say("federation", logging.ERROR, text, 60 + tick, 100 + tick)
    assert len(log.lines) == 3
    assert log.lines[1].endswith("no SuperLink (5 more like this in 60 s)")


def test_a_trouble_that_comes_back_after_a_good_line_is_a_new_one() -> None:
    log = Log()
    for _ in range(2):
        for _ in range(3):
            log.say("tidewheel.mqtt", logging.WARNING, "the connection was lost")
        log.say("tidewheel.other", logging.INFO, "another logger's line ends nothing")
        log.say("tidewheel.mqtt", logging.INFO, "connected again")
    lost = [line for line in log.lines if "lost" in line]
    assert lost == ["WARNING tidewheel.mqtt: the connection was lost"] * 2


def test_other_lines_are_written_as_they_come() -> None:
    log = Log()
    for number in range(50):
        log.say("federation", logging.INFO, "round %d admitted d%d", number, number)
        log.say("federation", logging.WARNING, "problem %s", "abcdefghij"[number % 10] * number)
    assert len(log.lines) == 100
    for model in ("3-1f2e3d4c", "4-0a1b2c3d"):
        log.say("tidewheel.edge", logging.WARNING, "back from %s to 2-aaaaaaaa: late", model)
    assert len(log.lines) == 102
    log.say("federation", logging.ERROR, "two %s", "words", "too many")  # is no reason to die
    log.say("federation", logging.INFO, "after")
    assert log.lines[-1] == "INFO federation: after"


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 200)), max_size=60))
@settings(max_examples=100)
def test_every_line_is_written_or_counted(seen: list[tuple[int, float]]) -> None:
    log = Log()
    for kind, later in seen:
        log.clock.now += later
        log.say("aiokafka", logging.INFO, f"kind {'abcdef'[kind]}")
    log.clock.now += EVERY_S + 1
    for kind in sorted({kind for kind, _ in seen}):  # says how many were left out
        log.say("aiokafka", logging.INFO, f"kind {'abcdef'[kind]}")
    counted = sum(int(line.partition("(")[2].split()[0]) for line in log.lines if "(" in line)
    assert len(log.lines) + counted == len(seen) + len({kind for kind, _ in seen})


def test_what_is_remembered_has_a_limit() -> None:
    log = Log()
    words = ["".join(chr(97 + int(digit)) for digit in str(n)) for n in range(2 * KINDS)]
    for word in words:
        log.say("x", logging.WARNING, word)
    assert len(log.lines) == 2 * KINDS
    for word in words[:KINDS]:
        log.say("x", logging.WARNING, word)
    assert len(log.lines) == 3 * KINDS  # they were forgotten


def test_a_log_file_that_is_too_large_is_moved_while_a_process_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    text = "import sys\nfor n in range(10**9):\n    print(n, flush=True) if n % 5000 == 0 else None"
    with path.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-c", text], stdout=output)
    try:
        for _ in range(4):
            until(lambda: rotate(path, 500, 2), "it is moved")
        until(lambda: path.stat().st_size > 0, "the process goes on")
    finally:
        process.kill()
        process.wait()
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        "worker.log",
        "worker.log.1",
        "worker.log.2",
    ]
    older = [line for n in (2, 1) for line in (tmp_path / f"worker.log.{n}").read_text().split()]
    assert older == sorted(older, key=int)
    assert b"\0" not in path.read_bytes()
    assert not rotate(path, 10**6, 2)
    assert not rotate(tmp_path / "none.log")
