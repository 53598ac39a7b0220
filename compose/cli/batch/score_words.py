"""The words of a `tidewheel score` command, read without running it."""

from collections.abc import Sequence

import click
import typer
import typer.main

from compose.cli.batch.score import score
from compose.cli.batch.score_options import ScoreOptions
from streams.contract.errors import UsageError

_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_app.command()(score)


def read_words(words: Sequence[str]) -> ScoreOptions:
    """Return the options behind `tidewheel score`; raise UsageError if they are no such call."""
    found: list[ScoreOptions] = []
    command = typer.main.get_command(_app)
    try:
        command.main(list(words), prog_name="score", standalone_mode=False, obj=found.append)
    except click.ClickException as exc:
        raise UsageError(f"score: {exc.format_message()}") from exc
    if not found:
        raise UsageError("score: --help is no job")
    return found[0]
