"""The end of a process that cannot go on."""

import subprocess
import sys

ENDS = """
import logging, threading
from streams.runtime.process import configure_logging, end_process

def keeps(lock):
    with lock:
        held.set()
        threading.Event().wait()

configure_logging()
held = threading.Event()
if {held}:
    threading.Thread(target=keeps, args=[logging.root.handlers[0].lock], daemon=True).start()
    held.wait()
end_process(logging.getLogger("pump"), "it hangs")
"""


def ended(held: bool) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(held=held)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "most recent call first" in done.stderr
    return done.stderr


def test_the_log_has_a_line_and_the_stacks_of_all_threads() -> None:
    assert "CRITICAL pump: it hangs; the stacks of all threads follow" in ended(held=False)


def test_it_ends_too_where_a_thread_keeps_the_lock_of_the_log() -> None:
    assert "in keeps" in ended(held=True)
