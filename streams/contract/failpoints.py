"""Dying on purpose at a numbered step, so that tests can kill a real process exactly there.

TIDEWHEEL_FAILPOINT=worker-step-2:3 makes the process kill itself with SIGKILL when it comes to the
end of step 2 for the third time. Without the variable nothing is armed. The worker's steps stand in
streams.worker.commit, those of installing a model version and
of going back in edge_client.slots.
"""

import os
import re
import signal
from collections.abc import Callable, Mapping

from streams.contract.errors import UsageError

Failpoint = Callable[[str], None]


def unarmed(_point: str) -> None:
    """The failpoint of every ordinary process."""


def read_failpoint(environ: Mapping[str, str]) -> Failpoint:
    """The failpoint that the environment asks for."""
    text = environ.get("TIDEWHEEL_FAILPOINT")
    if not text:
        return unarmed
    match = re.fullmatch(
        r"(worker-step-[1-5]|slots-step-[1-7]|back-step-[1-4]):([1-9][0-9]*)", text
    )
    if match is None:
        raise UsageError(f"TIDEWHEEL_FAILPOINT={text!r}: write it as worker-step-2:3")
    armed, left = match[1], int(match[2])

    def reached(point: str) -> None:
        nonlocal left
        left -= point == armed
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached
