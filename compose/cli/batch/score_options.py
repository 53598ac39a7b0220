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
    from federation.registry.named_model import NamedModel
    from streams.batch.jobs.job_folder import JobFolder, Models
    from streams.batch.jobs.submission import Request
    from streams.batch.records.documents import Specification


@dataclass(frozen=True)
class ScoreOptions:
    """The command's arguments and options, by the names that they have there."""

    task: str
    inputs: list[str] | None
    to: str
    model: str
    teacher: str | None
    teacher_device: str
    identity: str | None
    columns: str
    drop: str
    keep: str
    label_column: str | None
    where: str | None
    time: str | None
    device: str | None
    start: str | None
    stop: str | None
    rows: str
    input_format: str | None
    output_format: str | None
    table: str
    max_errors: str | None
    timeout: str | None
    processes: int | None
    ray: str | None
    report: Path | None
    input_topic: bool
    from_store: Path | None
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

    def request(self, weights: bytes | None = None, teacher: Artifact | None = None) -> "Request":
        """Return what is asked of a job; raise UsageError for an option that has no such value.
        `weights` are those of a personal model, `teacher` answers beside the model."""
        from streams.batch.jobs.submission import Request
        from streams.batch.records.documents import input_format
        from streams.batch.sources.inputs import Wanted
        from streams.batch.sources.stored import stored_inputs

        wanted = Wanted(
            columns=_names(self.columns),
            drop=_names(self.drop),
            id=self.identity,
            label=self.label_column,
            keep=_names(self.keep),
            where=self.where,
            device=self.device,
            time=self.time,
            start=self.start,
            stop=self.stop,
        )
        return Request(
            reference=absolute_reference(self.task),
            inputs=stored_inputs(self.inputs or [], self.from_store, topic=self.input_topic),
            output=self.to,
            wanted=wanted,
            rows="events" if self.input_topic else _kind(self.rows),
            input_format=input_format(self.input_format),
            output_format=self.output_format,
            table=self.table,
            max_errors=self.max_errors,
            job=self.job,
            stdin=sys.stdin.buffer,
            weights=weights,
            teacher=teacher,
            device=self.teacher_device,
        )


@dataclass(frozen=True)
class Specified:
    """A job that can work; nothing of it is written yet."""

    folder: "JobFolder"
    task: Task
    specification: "Specification"
    models: "Models"
    broker: Callable[[], BrokerSettings]


def specified(options: ScoreOptions) -> Specified:
    """Check all that can be wrong with a job; raise UsageError if it cannot work."""
    from streams.batch.jobs.job_folder import Models
    from streams.batch.jobs.submission import specify

    task = load_task(options.task)
    found = _model(task, options, options.model, "--model")
    beside = None
    if options.teacher is not None:
        beside = _model(task, options, options.teacher, "--teacher")
    request = options.request(found.weights, None if beside is None else beside.artifact)
    broker = partial(broker_of, options.state, options.kafka)
    specification = specify(task, found.artifact, request, broker)
    models = Models(found.data, None if beside is None else beside.data, found.weights)
    return Specified(request.folder, task, specification, models, broker)


def refuse_submitted(folder: "JobFolder") -> None:
    if folder.submitted:
        raise UsageError(f"{folder.folder} has become a job meanwhile: use another --job")


def _model(task: Task, options: ScoreOptions, name: str, option: str) -> "NamedModel":
    """Return the model that `option` names, verified."""
    from federation.registry.named_model import named_model

    layout, trust = StateDir(options.state), options.trust
    if not trust and not layout.public_key.exists():
        raise UsageError(
            f"{layout.public_key} is missing, the key that signs models: run tidewheel prepare, "
            "name a --state, or a key with --trust and a file with --model"
        )
    return named_model(
        task,
        name,
        lambda: [load_public_key(key) for key in trusted_keys(layout, trust)],
        lambda: registry_of(task, options.state, options.registry),
        option,
    )


def _names(text: str) -> list[str]:
    return text.split(",") if text else []


def _kind(rows: str) -> Literal["segments", "readings"]:
    if rows == "readings":
        return "readings"
    if rows == "segments":
        return "segments"
    raise UsageError(f"--as {rows}: segments or readings")
