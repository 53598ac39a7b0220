"""The signing key, the first model and the teacher of a state folder.

    python -m compose.launcher.preparation TASK STATE

makes them for `up`, which is to run for long without torch in its memory.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import LOOKED
from compose.preflight import check_quickly
from federation.bootstrap.initial_model import PilotReport, prepare, source_digest
from federation.registry.registry import Registry
from streams.contract.errors import ArtifactError, TidewheelError, UsageError
from streams.contract.task import Task, check_model, load_task
from streams.contract.task.metrics import named
from streams.contract.window_metrics import digits
from streams.learning.factors import check_factors
from streams.runtime.files import cache_folder, write_atomic
from streams.runtime.trust import create_key, load_public_key

Say = Callable[[str], None]

CHANGED = (
    "warning   the task's code or data has changed since its first model and teacher were made: "
    "these are used as they are; another --state, or another version of the task, makes new ones"
)


def look(task: Task, say: Say) -> None:
    """Build the task's models and look at some of its data, before anything is started or made."""
    check_model(task)
    check_factors(task)
    check_quickly(task, say)


def make_models(
    reference: str,
    task: Task,
    layout: StateDir,
    say: Say,
    first: Path | None = None,
    place: str | None = None,
) -> str:
    """Make what is missing and say so; return the served model's name. first: in place of the
    task's `first_model`; UsageError where a model is served already. place: the registry, by
    default the state folder's."""
    key = create_key(layout.signing_key)
    known = [load_public_key(path) for path in layout.trusted_keys()]
    registry = Registry(place or layout.registry, task.name, task.version, known)
    if first is not None and not task.learns:
        raise UsageError(
            f"--from {first}: the task's model is an OnnxFile: name the file there, or offer it "
            "with tidewheel models import"
        )
    if first is not None and (served := registry.serving()) is not None:
        raise UsageError(
            f"--from {first}: {registry.where} serves {served.model} already: offer the file with "
            "tidewheel models import"
        )
    report = prepare(
        reference,
        task if first is None else replace(task, first_model=first),
        registry,
        key,
        cache_folder(),
        progress=lambda text: say(f"model     {text}"),
    )
    try:
        serving = registry.serving()
    except ArtifactError as exc:
        raise UsageError(
            f"the registry {registry.where} cannot be used: {exc}: it belongs to another task or "
            "key; name another folder with --state, or another --registry"
        ) from exc
    if serving is None:
        raise UsageError(f"the registry {registry.where} serves no model: remove it")
    made_of = source_digest(reference, task)
    if report is None:
        say(f"model     {serving.model} from {registry.where}")
        if layout.made_of.exists() and layout.made_of.read_text() != made_of:
            say(CHANGED)
    else:
        write_atomic(layout.made_of, made_of.encode())
        for line in model_lines(task, report):
            say(line)
    return serving.model


def model_lines(task: Task, report: PilotReport) -> list[str]:
    """What was made, for a person."""
    how = "from the cache" if report.cached else "made" if report.source else "trained"
    source = f" is of {report.source};" if report.source else " and"
    fleet = _beside(report.model_fleet, report.teacher_fleet, "the fleet")
    if task.source == "live":
        fleet = "the fleet: not measured, its readings are live"
    held_out = _beside(report.model_held_out, report.teacher_held_out, "held-out devices")
    lines = [
        f"model     {report.model}{source} the teacher {how} in {report.seconds:.1f} s",
        f"          {named(report.metric)} on {fleet}",
        f"          on all segments of {held_out}",
    ]
    return [*lines, f"          warning: {report.warning}"] if report.warning else lines


def _beside(model: float | None, teacher: float | None, where: str) -> str:
    if model is None or teacher is None:
        return f"{where}: not measured, there are no readings with labels for which it is defined"
    return f"{where} {digits(model)}, the teacher's {digits(teacher)}"


def main(reference: str, state: str) -> int:
    """That process; its exit code."""
    try:
        task = load_task(reference)
        look(task, _print)
        _print(LOOKED)
        if not sys.stdin.readline():  # `up` has ended
            return 1
        make_models(reference, task, StateDir(Path(state)), _print)
    except TidewheelError as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return exc.exit_code
    return 0


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
