"""Others' load leaves out all that the benchmark itself runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.machine import Process, load_fact, ours_s, processes

BUSY = "import time\nwhile time.process_time() < {s}: pass\nprint(flush=True)\ninput()"


def test_descendants_count_at_any_depth_and_nobody_else() -> None:
    running = {
        1: Process(0, 100.0),
        10: Process(1, 1.0),  # the benchmark
        11: Process(10, 2.0),
        12: Process(11, 4.0),
        20: Process(1, 8.0),  # a broker that is not its child
        30: Process(1, 16.0),
    }
    assert ours_s(running, 10) == 7.0
    assert ours_s(running, 10, 20) == 15.0
    assert ours_s(running, 10, 11) == 7.0  # once


@contextmanager
def busy(seconds: float) -> Iterator[int]:
    """A process that has used so much of the CPU and waits; its id."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(s=seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate(b"\n")


def test_a_process_counts_while_it_runs() -> None:
    with busy(0.2) as pid:
        assert processes()[pid].cpu_s >= 0.15


def test_a_process_that_was_waited_for_counts_for_its_parent() -> None:
    before = processes()[os.getpid()].cpu_s
    with busy(0.2):
        pass
    assert processes()[os.getpid()].cpu_s - before >= 0.15


def test_a_load_of_a_fifth_of_a_core_makes_figures_provisional() -> None:
    assert load_fact(0.2) == "at most 20% of a core, averaged over a run"
    assert load_fact(0.21, "a part") == (
        "at most 21% of a core, averaged over a part: **provisional**"
    )
