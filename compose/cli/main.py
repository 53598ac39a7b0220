"""The `tidewheel` command line.

The table GROUPS names every command and where it is. A command's module is imported when the
command runs, not for `tidewheel --help`, and each command imports only its own part: a device needs
no faust, a worker no Flower. Settings are read there once and passed down. An intentional error is
one line on stderr; the exit code is 2 for wrong usage and 1 for a failure.
"""

import ast
import errno
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import click
import typer
import typer.core
import typer.main

from streams.contract.errors import TidewheelError

GROUPS = {
    "Run": {
        "up": "tasks:up",
        "new": "tasks:new",
        "check": "tasks:check",
        "prepare": "tasks:prepare",
        "schema": "tasks:schema",
        "worker": "worker:worker",
        "controller": "server:controller",
        "superlink": "flower:superlink",
    },
    "Devices": {"edge": "edge:app", "node": "flower:app", "label": "server:label"},
    "Look": {
        "status": "views:status",
        "timeline": "views:timeline",
        "query": "views:query",
        "tail": "views:tail",
        "console": "views:console",
        "dead-letters": "views:dead_letters",
    },
    "Batch": {
        "score": "batch.score:score",
        "jobs": "batch.jobs:app",
        "schedule": "batch.schedule:app",
    },
    "Models and keys": {
        "models": "models:app",
        "keys": "keys:app",
        "train": "server:train",
    },
}
COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}
HELP = {  # of a group of commands; that of a command is its function's docstring
    "edge": "One device: run, status, drain, label, wipe, forget.",
    "node": "The SuperNodes that may connect: add, list, remove.",
    "label": "Labels that other systems know: import.",
    "jobs": "Jobs of `tidewheel score`: run, list, stop, resume.",
    "schedule": "Batch jobs at set times: add, list, backfill, remove.",
    "models": "Versions in the registry: list, import, verify, promote, rollback, rollout, prune.",
    "keys": "Signing keys: list, trust, use, revoke.",
}


def load(name: str) -> click.Command:
    """Import the command or group `name` of COMMANDS and return it."""
    module, attribute = COMMANDS[name].split(":")
    found = getattr(import_module(f"compose.cli.{module}"), attribute)
    holder = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name, help=HELP[name])
    else:
        holder.command(name)(found)
    return typer.main.get_group(holder).commands[name]


def help_of(name: str) -> str:
    """Return the help of a command without importing it: the docstring of its function in the
    source, of `run_<name>` where the command takes the options of its settings."""
    if name in HELP:
        return HELP[name]
    module, attribute = COMMANDS[name].split(":")
    path = Path(__file__).parent / f"{module.replace('.', '/')}.py"
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name in (attribute, f"run_{attribute}"):
            return ast.get_docstring(node) or ""
    return ""


class NotLoaded(click.Command):
    """A command that is listed, and not imported."""

    def get_short_help_str(self, limit: int = 45) -> str:
        self.help = help_of(self.name or "")
        return super().get_short_help_str(limit)


class LazyGroup(typer.core.TyperGroup):
    """The root of the command line: it lists COMMANDS in their groups, and imports a command to run
    it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: NotLoaded(name) for name in COMMANDS}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        for title, names in GROUPS.items():
            with formatter.section(title):
                rows = [(name, self.commands[name].get_short_help_str(limit)) for name in names]
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else command, rest


app = typer.Typer(
    name="tidewheel",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tidewheel {version('tidewheel')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A fleet of devices that infer on their own streams and learn in federated rounds. Kafka
    transports their events, Faust workers score them, and signed models go back."""


def whole() -> click.Group:
    """Return the root with all commands imported, for documentation and tests."""
    root = typer.main.get_group(app)
    root.commands = {name: load(name) for name in COMMANDS}
    return root


NO_ACCESS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENOENT,
)  # fmt: skip


def main() -> None:
    """Run the command `tidewheel`."""
    typer.core.HAS_RICH = False  # otherwise plain help shows brackets that are escaped for rich
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:
        if interrupts:  # a library may make another error of it, such as an ImportError
            sys.exit(130)
        sys.exit(_explained(exc))
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python exits: no traceback


def _explained(exc: Exception) -> int:
    """Say in one line what is wrong, and return the exit code; raise what is a defect."""
    text, code = str(exc), 2
    if isinstance(exc, TidewheelError):
        code = exc.exit_code
    elif isinstance(exc, OSError) and exc.errno in NO_ACCESS and exc.filename is not None:
        advice = "name a place that you may write to and that is there, or make room"
        text = f"{exc.filename}: {exc.strerror}: {advice}"
    else:
        raise exc
    print(f"tidewheel: {text}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
