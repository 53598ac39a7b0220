"""What `tidewheel score` was called with, and the job that it asks for."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compose.cli.arguments import broker_of, registry_of, trusted_keys
from compose.launcher.state_dir import StateDir
from streams.contract.artifact import Artifact
from streams.contract.errors import UsageError
from streams.contract.task import Task, absolute_reference, load_task
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import load_public_key

if TYPE_CHECKING:
    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.jobs.submission import Request
    from streams.batch.records.documents import Specification


@dataclass(frozen=True)
class ScoreOptions:
    """The command's arguments and options, by the names that they have there."""

    task: str
    inputs: list[str]
    to: str
    model: str
    identity: str | None
    columns: str
    drop: str
    keep: str
    label_column: str | None
    where: str | None
    time: str | None
    start: str | None
    stop: str | None
    rows: str
    input_format: str | None
    output_format: str | None
    table: str
    max_errors: str | None
    timeout: str | None
    processes: int | None
    report: Path | None
    job: Path | None
    detach: bool
    priority: int
    expires_after: str | None
    max_waiting: int
    state: Path
    registry: str | None
    trust: list[Path] | None
    kafka: str | None
    json: bool

    def broker(self) -> BrokerSettings:
        return broker_of(self.state, self.kafka)

    def request(self) -> "Request":
        """Return what is asked of a job; raise UsageError for an option that has no such value."""
        from streams.batch.jobs.submission import Request
        from streams.batch.records.documents import input_format
        from streams.batch.sources.inputs import Wanted

        wanted = Wanted(
            columns=_names(self.columns),
            drop=_names(self.drop),
            id=self.identity,
            label=self.label_column,
            keep=_names(self.keep),
            where=self.where,
            time=self.time,
            start=self.start,
            stop=self.stop,
        )
        return Request(
            reference=absolute_reference(self.task),
            inputs=self.inputs,
            output=self.to,
            wanted=wanted,
            rows=_kind(self.rows),
            input_format=input_format(self.input_format),
            output_format=self.output_format,
            table=self.table,
            max_errors=self.max_errors,
            job=self.job,
            stdin=sys.stdin.buffer,
        )


@dataclass(frozen=True)
class Specified:
    """A job that can work; nothing of it is written yet."""

    folder: "JobFolder"
    task: Task
    specification: "Specification"
    model: bytes
    broker: Callable[[], BrokerSettings]


def specified(options: ScoreOptions) -> Specified:
    """Check all that can be wrong with a job; raise UsageError if it cannot work."""
    from streams.batch.jobs.submission import specify

    task = load_task(options.task)
    artifact, data = _model(task, options.model, options.state, options.registry, options.trust)
    request = options.request()
    broker = partial(broker_of, options.state, options.kafka)
    return Specified(request.folder, task, specify(task, artifact, request, broker), data, broker)


def refuse_submitted(folder: "JobFolder") -> None:
    if folder.submitted:
        raise UsageError(f"{folder.folder} has become a job meanwhile: use another --job")


def _model(
    task: Task, name: str, state: Path, registry: str | None, trust: list[Path] | None
) -> tuple[Artifact, bytes]:
    """Return the named model version, verified, and its bytes."""
    from federation.registry.named_model import named_model

    layout = StateDir(state)
    if not trust and not layout.public_key.exists():
        raise UsageError(
            f"{layout.public_key} is missing, the key that signs models: run tidewheel prepare, "
            "name a --state, or a key with --trust and a file with --model"
        )
    return named_model(
        task,
        name,
        lambda: [load_public_key(key) for key in trusted_keys(layout, trust)],
        lambda: registry_of(task, state, registry),
        "--model",
    )


def _names(text: str) -> list[str]:
    return text.split(",") if text else []


def _kind(rows: str) -> Literal["segments", "readings"]:
    if rows == "readings":
        return "readings"
    if rows == "segments":
        return "segments"
    raise UsageError(f"--as {rows}: segments or readings")
