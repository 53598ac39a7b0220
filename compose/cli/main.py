"""The `tidewheel` command line.

The table COMMANDS names every command and where it is. A command's module is imported when the
command runs, not for `tidewheel --help`, and each command imports only its own part: a device needs
no faust, a worker no Flower. Settings are read there once and passed down. An intentional error is
one line on stderr; the exit code is 2 for wrong usage and 1 for a failure.
"""

import os
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple

# We use no plugin of pydantic's, and looking for some reads the metadata of every package.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

import click
import typer
import typer.core
import typer.main

from streams.contract.errors import TidewheelError


class Place(NamedTuple):
    """Where a command is: `attribute` of `module`, a function or the Typer app of a group. `help`
    is the first sentence of the function's docstring, or the whole help of the group."""

    module: str
    attribute: str
    help: str


CLI = "compose.cli"
COMMANDS = {
    "timeline": Place(
        f"{CLI}.views",
        "timeline",
        "Show what happened, when and why: runs, decisions, devices that went back, drift, "
        "agreement.",
    ),
    "worker": Place(
        f"{CLI}.worker",
        "worker",
        "Run a scoring worker: close event-time windows and score them with the teacher.",
    ),
    "teacher": Place(
        f"{CLI}.server",
        "teacher",
        "Sign new weights for the teacher and offer them; workers switch between two commits.",
    ),
    "controller": Place(
        f"{CLI}.server",
        "controller",
        "Start federated runs when needed, and roll models out to the devices or back.",
    ),
    "train": Place(
        f"{CLI}.server",
        "train",
        "Request a federated run from the controller, regardless of budgets; it starts after an "
        "active one.",
    ),
    "superlink": Place(
        f"{CLI}.flower",
        "superlink",
        "Run Flower's SuperLink on loopback, with TLS and for SuperNodes with registered keys "
        "only.",
    ),
    "superexec": Place(
        f"{CLI}.flower",
        "superexec",
        "Run Flower's SuperExec, which starts the server's part of each federated run, beside the "
        "SuperLink of the same state folder.",
    ),
    "up": Place(
        f"{CLI}.tasks",
        "up",
        "Run everything on this machine: broker, worker, devices, Flower, controller, console.",
    ),
    "prepare": Place(
        f"{CLI}.tasks",
        "prepare",
        "Create the signing key, the first model and the teacher; `up` does this too.",
    ),
    "status": Place(
        f"{CLI}.views",
        "status",
        "Show the fleet from its topics: devices, agreement, drift, rounds, the release; and the "
        "workers' speed and lag.",
    ),
    "rounds": Place(
        f"{CLI}.views",
        "rounds",
        "Show the federated runs: rounds, nodes, updates admitted and refused, accuracy, outcome.",
    ),
    "query": Place(f"{CLI}.views", "query", "Query the store with DuckDB."),
    "tail": Place(
        f"{CLI}.views",
        "tail",
        "Print the messages of a topic readably: the last ones, then new ones.",
    ),
    "console": Place(
        f"{CLI}.views",
        "console",
        "Serve a live page of the fleet, and the same as JSON: overview, devices, learning, "
        "releases, data quality, batch jobs.",
    ),
    "score": Place(
        f"{CLI}.batch.score",
        "score",
        "Score stored segments with the model that devices run: one output row for each input row.",
    ),
    "new": Place(
        f"{CLI}.tasks",
        "new",
        "Write a commented task file that runs as it is, on made-up readings.",
    ),
    "check": Place(
        f"{CLI}.tasks",
        "check",
        "Look at a task before its first run: readings, labels, rates, model, sizes.",
    ),
    "edge": Place(f"{CLI}.edge", "app", "One device: run, status, drain, label, wipe."),
    "dead-letters": Place(
        f"{CLI}.dead_letters",
        "app",
        "Messages that could not be decoded or scored: list, replay.",
    ),
    "jobs": Place(
        f"{CLI}.batch.jobs",
        "app",
        "Jobs of `tidewheel score`: run, list, stop, resume, prune.",
    ),
    "schedule": Place(
        f"{CLI}.batch.schedule",
        "app",
        "Batch jobs at set times: add, list, backfill, remove.",
    ),
    "keys": Place(f"{CLI}.keys", "app", "Signing keys: list, trust, use, revoke."),
    "models": Place(
        f"{CLI}.models",
        "app",
        "The versions in the registry: list, verify, promote, rollback, pause, resume, prune.",
    ),
    "node": Place(
        f"{CLI}.flower",
        "app",
        "The SuperNodes that may connect: add, list, remove, proxy-certificate.",
    ),
}


def load(name: str) -> click.Command:
    """Import the command or group `name` of COMMANDS and return it."""
    place = COMMANDS[name]
    found = getattr(import_module(place.module), place.attribute)
    holder = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name, help=place.help)
    else:
        holder.command(name)(found)
    return typer.main.get_group(holder).commands[name]


class LazyGroup(typer.core.TyperGroup):
    """The root of the command line: it lists COMMANDS, and imports a command to run it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {n: click.Command(n, help=place.help) for n, place in COMMANDS.items()}

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


def main() -> None:
    """Run the command `tidewheel`."""
    typer.core.HAS_RICH = False  # otherwise plain help shows brackets that are escaped for rich
    try:
        app()
    except TidewheelError as exc:
        print(f"tidewheel: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
