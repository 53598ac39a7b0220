"""The end of a process that cannot go on: what is wrong, and where each thread is."""

import contextlib
import faulthandler
import logging
import os
from typing import NoReturn


def end_process(log: logging.Logger, text: str, failure: BaseException | None = None) -> NoReturn:
    """Exit with 1 at once, after a line in the log, the failure's trace, and the stacks of all
    threads: the supervisor starts the process again, and the spool has all events."""
    log.critical("%s; the stacks of all threads follow", text, exc_info=failure)
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no standard error
        faulthandler.dump_traceback(all_threads=True)
    os._exit(1)
