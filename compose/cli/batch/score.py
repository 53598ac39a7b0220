"""`tidewheel score`: batch scoring of stored files. Its options are the fields of Settings."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import typer.main
from pydantic.fields import FieldInfo

from compose.cli.arguments import RegistryPlace, State, TaskArgument, Trust
from streams.batch.records.settings import Settings, option_name
from streams.contract.errors import UsageError

SHARED: dict[str, Any] = {
    "task": TaskArgument, "state": State, "registry": RegistryPlace, "trust": Trust
}  # fmt: skip


def taking_settings(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command whose parameters are the options of a job and those of `run` behind
    `settings`, which it is called with."""

    def command(**given: Any) -> Any:
        others = {name: given.pop(name) for name in own if name in given}
        return run(Settings.of(given), **others)

    own = {
        name: found.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, found in inspect.signature(run).parameters.items()
        if name != "settings"
    }
    named = {one.name: one for one in [*_parameters(), *own.values()]}
    command.__signature__ = inspect.Signature(list(named.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: one.annotation for name, one in named.items()}
    command.__doc__ = run.__doc__
    return command


def _parameters() -> Iterator[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    for name, field in Settings.model_fields.items():
        if name != "cwd":
            default = inspect.Parameter.empty if field.is_required() else _default(field)
            annotation = SHARED.get(name) or _option(name, field)
            yield inspect.Parameter(name, kind, default=default, annotation=annotation)


def _option(name: str, field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    metavar: Any = extra.get("metavar") if isinstance(extra, dict) else None
    if name == "inputs":
        return Annotated[list[str], typer.Argument(metavar=metavar, help=field.description)]
    option = typer.Option(option_name(name), metavar=metavar, help=field.description)
    if name == "processes":
        return Annotated[int | None, option]
    return Annotated[str if field.is_required() or isinstance(field.default, str) else str | None,
                     option]  # fmt: skip


def _default(field: FieldInfo) -> Any:
    return field.default if isinstance(field.default, str | Path) else None


def run_score(
    settings: Settings,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Queue the job for `tidewheel jobs run`, and print its id at once."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score stored segments with the model that devices run: one output row for each input row.

    A job that was stopped or killed is continued with `tidewheel jobs resume`. Exits 0 when the job
    is complete, 1 when it failed, 2 for a wrong call, 3 when its time was over, 130 when it was
    stopped. With --detach it exits 0 when the job is queued.
    """
    from compose.cli.batch.submitting import enqueue, submitted

    if detach:
        enqueue(settings, json)
        return
    with submitted(settings) as (job, task, lock):
        from compose.cli.batch.running import run_job

        run_job(job, task, settings, lock, json)


score = taking_settings(run_score)


def read_words(words: Sequence[str]) -> Settings:
    """Return the settings that words behind `tidewheel score` say; raise UsageError if they are no
    such call."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(taking_settings(lambda settings: settings))
    try:
        found = typer.main.get_command(app).main(
            list(words), prog_name="score", standalone_mode=False
        )
    except click.ClickException as exc:
        raise UsageError(f"score: {exc.format_message()}") from exc
    if not isinstance(found, Settings):
        raise UsageError("score: --help is no job")
    return found
