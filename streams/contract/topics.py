"""The topics: names, partitions, retention and cleanup policy.

A topic's full name is `<task>.v<version>.<name>` (`har.v2.events`): a task version has all topics
for itself, as it has its workers' and controllers' groups and its state folder. Several tasks, and
the versions of one, can share a cluster, and nothing that is read can be of another version.
"""

from dataclasses import dataclass

EVENTS = "events"
LABELS = "labels"
SCORES = "scores"
WINDOWS = "windows"
RELEASES = "releases"
ARTIFACTS = "artifacts"
FLEET = "fleet"
ROUNDS = "rounds"
DEAD_LETTERS = "dead-letters"
VIEW = "view"
INVITATIONS = "invitations"

KEPT_MS = "retention.ms"
STAMPED = {"message.timestamp.type": "LogAppendTime"}
KEPT_BYTES = "retention.bytes"  # of a partition

TIDY_MS = 600_000
DAY_MS = 24 * 3600 * 1000
MAX_MESSAGE_BYTES = 1_000_000  # under the brokers' default limit of 1,048,588


@dataclass(frozen=True)
class TopicSpec:
    """Settings of a new topic; `retention_ms` -1 keeps messages forever. `tidy`: a compacted topic
    is compacted within about TIDY_MS, so that it is as long as it has keys and what TIDY_MS
    brings. `stamped`: retention begins when the broker gets a message, whatever time its producer
    says: devices' clocks may be wrong, and history has old dates."""

    name: str
    partitions: int
    cleanup: str
    retention_ms: int
    tidy: bool = False
    stamped: bool = False

    @property
    def configs(self) -> dict[str, str]:
        found = {"cleanup.policy": self.cleanup, KEPT_MS: str(self.retention_ms)}
        if self.tidy:  # the newest segment is never compacted: a new one begins often
            lag = {"segment.ms": str(TIDY_MS), "max.compaction.lag.ms": str(TIDY_MS)}
            found |= {**lag, "min.cleanable.dirty.ratio": "0.1"}
        return found | (STAMPED if self.stamped else {})

    @property
    def required(self) -> dict[str, str]:
        """The settings that an existing topic must have. How long it keeps messages is the
        operator's decision, unless it must keep them forever."""
        of_operator = {*STAMPED, *({KEPT_MS} if self.retention_ms >= 0 else ())}
        return {n: v for n, v in self.configs.items() if n not in of_operator}

    @property
    def limits(self) -> dict[str, str]:
        """What a new topic keeps, -1 for all: an existing one may keep more. Empty if it is
        compacted only."""
        kept = {KEPT_MS: str(self.retention_ms), KEPT_BYTES: "-1"}
        return (kept if "delete" in self.cleanup else {}) | (STAMPED if self.stamped else {})


def task_id(name: str, version: int) -> str:
    """Return the id of a task version: `har.v2`."""
    return f"{name}.v{version}"


def topic_name(task: str, topic: str) -> str:
    """Return the full name of `topic` of the task version with the id `task`."""
    return f"{task}.{topic}"


def worker_group(task: str) -> str:
    """Return the consumer group of the workers of the task version with the id `task`, which is the
    name of their Faust app."""
    return f"tidewheel-{task}-worker"


def topic_specs(task: str, partitions: int = 4) -> list[TopicSpec]:
    """Return all topics of the task version with the id `task`.

    `labels`, `scores` and `windows` have as many partitions as `events`: a worker owns the same
    partitions of both that it reads, and publishes to those, so a device's scores are in the
    partition of its events.
    """
    week = 7 * DAY_MS
    rows = [
        (EVENTS, partitions, "delete", week),
        (LABELS, partitions, "delete", 4 * week),
        (SCORES, partitions, "delete", week),
        (WINDOWS, partitions, "delete", week),
        (RELEASES, 1, "compact", -1),
        (ARTIFACTS, 1, "delete", -1),
        (FLEET, 1, "compact", -1),
        (ROUNDS, 1, "delete", 4 * week),
        (DEAD_LETTERS, 1, "delete", 4 * week),
        (VIEW, 1, "compact", -1),
        (INVITATIONS, 1, "delete", DAY_MS),
    ]
    return [
        TopicSpec(
            topic_name(task, name),
            n,
            policy,
            keep,
            tidy=name in (FLEET, VIEW),
            stamped=name in (EVENTS, LABELS),
        )
        for name, n, policy, keep in rows
    ]
