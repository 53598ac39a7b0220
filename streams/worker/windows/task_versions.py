"""The versions of a task that a worker scores: its own and, while both exist, another one."""

from dataclasses import dataclass

from streams.contract.errors import UsageError
from streams.contract.events.records import version_of
from streams.contract.task import Task


@dataclass(frozen=True)
class TaskVersions:
    """`current` is what the worker is for; messages that name no version are of it."""

    current: Task
    other: Task | None = None

    def __post_init__(self) -> None:
        if self.other is None:
            return
        ours, theirs = self.current, self.other
        if theirs.name != ours.name:
            raise UsageError(f"{theirs.name} is another task than {ours.name}, not its version")
        if theirs.version == ours.version:
            raise UsageError(f"both files are version {ours.version} of task {ours.name}")

    @property
    def all(self) -> tuple[Task, ...]:
        return (self.current,) if self.other is None else (self.current, self.other)

    def named(self, version: int | None) -> Task | None:
        """Return the task of a version, None standing for a row of an older store; None if it is
        scored here no more, or not yet."""
        if version is None:
            return self.current
        return next((task for task in self.all if task.version == version), None)

    def of_message(self, headers: dict[str, bytes]) -> Task:
        """Return by which version to decode a message; one that is neither's is refused by the
        current one."""
        text = version_of(headers)
        return next((t for t in self.all if str(t.version).encode() == text), self.current)
