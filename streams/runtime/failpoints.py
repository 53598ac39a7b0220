"""Failpoints: kill a real process at a numbered step, for tests.

With TIDEWHEEL_FAILPOINT=worker-step-2:3 the process kills itself with SIGKILL at the third end of
step 2; with worker-step-2:3:stop it stops itself with SIGSTOP. Without the variable nothing is
armed. The steps are numbered in:

    worker-step-1..5   streams.worker.commit.committer
    late-step-1..2     streams.worker.commit.label_revisions: labels of stored events
    hole-step-1..4     streams.worker.commit.hole_keeper: messages that retention has deleted
    slots-step-1..7    edge_client.inference.slots: installing a model version
    back-step-1..4     edge_client.inference.slots: going back
    spool-step-1..5    edge_client.spool.queue: appending a frame
    uplink-step-1..4   edge_client.uplink.uplink
    label-step-1..2    edge_client.samples.labels: labels are written to their queue
    round-step-1..8    federation.rounds.run: one run
    resume-step-1..4   federation.controller.run_recovery: a dead run is resumed
    release-step-1..4  federation.registry.publisher: a decision is made and published
    keys-step-1..4     streams.runtime.trust: another key signs
    import-step-1..2   federation.bootstrap.replacement: a version made elsewhere
    score-step-1..9    streams.batch.jobs.job: a batch job
    attempt-step-1..4  streams.batch.jobs.job_queue: a queued job
    schedule-step-1..3 streams.batch.jobs.schedules: an interval is due
"""

import os
import re
import signal
from collections.abc import Callable, Mapping

from streams.contract.errors import UsageError

STEPS = (
    "worker-step-[1-5]|late-step-[12]|hole-step-[1-4]|slots-step-[1-7]|back-step-[1-4]|"
    "spool-step-[1-5]|uplink-step-[1-4]|label-step-[12]|"
    "round-step-[1-8]|resume-step-[1-4]|release-step-[1-4]|"
    "keys-step-[1-4]|import-step-[12]|score-step-[1-9]|attempt-step-[1-4]|schedule-step-[1-3]"
)
Failpoint = Callable[[str], None]


def unarmed(_point: str) -> None:
    """Do nothing: the failpoint of every normal process."""


def read_failpoint(environ: Mapping[str, str]) -> Failpoint:
    """Return the failpoint that the environment sets."""
    text = environ.get("TIDEWHEEL_FAILPOINT")
    if not text:
        return unarmed
    match = re.fullmatch(f"({STEPS}):([1-9][0-9]*)(:stop)?", text)
    if match is None:
        raise UsageError(f"TIDEWHEEL_FAILPOINT={text!r}: write it as worker-step-2:3")
    armed, left = match[1], int(match[2])
    number = signal.SIGSTOP if match[3] else signal.SIGKILL

    def reached(point: str) -> None:
        nonlocal left
        left -= point == armed
        if left == 0 and point == armed:
            os.kill(os.getpid(), number)

    return reached
