"""Printing the result of a query."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_result(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console, *, as_json: bool
) -> None:
    """A table, or one JSON object a line."""
    if as_json:
        for row in rows:
            text = json.dumps(dict(zip(columns, row, strict=True)), default=str)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table()
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))  # no markup: values are the user's
    console.print(table)
