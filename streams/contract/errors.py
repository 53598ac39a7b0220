"""Every error that Tidewheel raises on purpose.

    TidewheelError            one line for a person: what, where, what to do
    ├── UsageError            the call is wrong (exit code 2): a flag, a task file, a setting
    │   └── TaskError         the task file or one of its attributes
    ├── Retryable             it may pass: back off and try again
    │   └── BrokerUnavailable no Kafka broker answers
    ├── MalformedRecord       poison: park it on `dead-letters`, count it, go on
    ├── ArtifactError         an artifact is not run, the previous slot goes on serving
    ├── SpoolError            the spool's folder cannot be used
    ├── PartitionLost         another worker owns the partition: stop writing
    └── ProcessFailed         a process that we started did not come up or died

Anything that is not a TidewheelError is a defect and stops the process that meets it.
A library's error is translated once, where the library is called, with `from exc`.
"""


class TidewheelError(Exception):
    """Base of all errors raised on purpose; its text is one line for a person."""

    exit_code = 1


class UsageError(TidewheelError):
    """The command was called wrongly."""

    exit_code = 2


class TaskError(UsageError):
    """A task file cannot be used as it is."""


class Retryable(TidewheelError):
    """What failed may work when tried again."""


class BrokerUnavailable(Retryable):
    """No Kafka broker answers at the configured address."""


class MalformedRecord(TidewheelError):
    """A message that cannot be understood.

    `reason` is a short slug fit for a metric label; the text says the details.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ArtifactError(TidewheelError):
    """An artifact that must not be run; `reason` is a short slug."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class SpoolError(TidewheelError):
    """The spool's folder cannot be read or written."""


class PartitionLost(TidewheelError):
    """The store shows that another worker has committed for this partition."""


class ProcessFailed(TidewheelError):
    """A process that was started did not become ready, or ended by itself."""
