"""The end of a process that cannot go on: what is wrong, and where each thread is."""

import contextlib
import faulthandler
import logging
import os
from typing import NoReturn


def show_threads() -> None:
    """Write the stacks of all threads to standard error, if there is one.

    For a thread of Python's: it holds the interpreter meanwhile. What `faulthandler.register` does
    in the signal itself reads the frames of threads that run, and has ended an agent with SIGSEGV.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        faulthandler.dump_traceback(all_threads=True)


def end_process(log: logging.Logger, text: str, failure: BaseException | None = None) -> NoReturn:
    """Exit with 1 at once, after a line in the log, the failure's trace, and the stacks of all
    threads: the supervisor starts the process again, and the spool has all events."""
    log.critical("%s; the stacks of all threads follow", text, exc_info=failure)
    logging.shutdown()
    show_threads()
    os._exit(1)
