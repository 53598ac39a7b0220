"""All errors that Tidewheel raises on purpose.

    TidewheelError            one line for a person: what, where, what to do
    ├── UsageError            wrong usage (exit code 2): an option, a task file, a setting
    │   └── TaskError         the task file or one of its attributes
    ├── Retryable             temporary: back off and try again
    │   └── BrokerUnavailable no Kafka broker answers
    ├── MalformedRecord       poison: move it to `dead-letters`, count it, continue
    ├── ArtifactError         the artifact must not be run; the previous slot keeps serving
    ├── SpoolError            the spool's folder cannot be used
    ├── PartitionLost         another worker owns the partition: stop writing
    ├── ProcessorFailed       the GPU of a teacher failed: nothing that it scored is lost
    └── ProcessFailed         a child process did not start, or died

Any other error is a defect and stops the process.
A library's error is translated once, where the library is called, with `from exc`.
"""

import re
import traceback


def line_of(exc: BaseException) -> str:
    """Return what a library says in one line, without its colours and arrows."""
    text = re.sub(r"\x1b\[\d*m|↳", "", str(exc))
    return " ".join(text.split())[:300] or type(exc).__name__


def own_line(exc: BaseException) -> str:
    """Return the last line of the user's own code, not of a library's, as ", file:line"; "" without
    one."""
    frames = traceback.extract_tb(exc.__traceback__)[1:]  # without ours
    others = ("site-packages", "/lib/python", "<frozen", __file__.removesuffix("errors.py"))
    own = [f for f in frames if not any(part in f.filename for part in others)]
    return f", {own[-1].filename}:{own[-1].lineno}" if own else ""


class TidewheelError(Exception):
    """Base class of the errors raised on purpose; the text is one line for a person.

    >>> from tidewheel import TidewheelError
    >>> TidewheelError.exit_code
    1
    """

    exit_code = 1


class UsageError(TidewheelError):
    """A wrong command line, setting or input file.

    >>> from tidewheel import TidewheelError, UsageError
    >>> issubclass(UsageError, TidewheelError), UsageError.exit_code
    (True, 2)
    """

    exit_code = 2


class TaskError(UsageError):
    """A task file that cannot be used.

    >>> from tidewheel import TaskError, load_task
    >>> try:
    ...     load_task("pumps.py:task")
    ... except TaskError as error:
    ...     print(error)
    task 'pumps.py:task': there is no file pumps.py

    `field` is the attribute of the task to fix, where it is known.
    """

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


class Retryable(TidewheelError):
    """A failure that may pass when tried again."""


class BrokerUnavailable(Retryable):
    """No Kafka broker answers at the configured address.

    >>> from tidewheel import BrokerUnavailable, TidewheelError
    >>> issubclass(BrokerUnavailable, TidewheelError)
    True
    """


class TopicMissing(BrokerUnavailable):
    """A broker answers, but does not have the topic."""


class MessageRefused(BrokerUnavailable):
    """A broker answers, but never takes this message; `reason` is a slug for the account."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class MalformedRecord(TidewheelError):
    """A message that cannot be decoded; `reason` is a slug for a metric's label.

    >>> from tidewheel import MalformedRecord
    >>> str(MalformedRecord("wrong-key", "key b'd1' and header device 'd0' differ"))
    "wrong-key: key b'd1' and header device 'd0' differ"
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ArtifactError(TidewheelError):
    """An artifact that must not be run; `reason` is a slug for a metric's label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class SpoolError(TidewheelError):
    """The spool's folder cannot be read or written."""


class PartitionLost(TidewheelError):
    """Another worker has committed for this partition, according to the store."""


class ProcessorFailed(TidewheelError):
    """The device that a teacher's forward passes run on failed, or has too little memory."""


class ProcessFailed(TidewheelError):
    """A child process did not become ready, or ended by itself."""
