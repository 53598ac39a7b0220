"""A worker's store as input."""

from collections.abc import Sequence
from pathlib import Path

from streams.batch.sources.delta_table import columns_of
from streams.batch.sources.inputs import SEGMENT
from streams.contract.errors import UsageError

SCORES = "scores"  # its table


def stored_inputs(inputs: Sequence[str], store: Path | None, *, topic: bool) -> list[str]:
    """Return what is named as input: files, or the table of a store that has kept segments; raise
    UsageError for none, for several, and for a store without segments."""
    if sum((bool(inputs), store is not None, topic)) != 1:
        raise UsageError("name one input: INPUT..., --input-topic, or --from-store FOLDER")
    if store is None:
        return list(inputs)
    table = store / SCORES
    if not (table / "_delta_log").is_dir():
        raise UsageError(f"--from-store {store}: it is no store, it has no Delta table {SCORES}")
    if SEGMENT not in columns_of(str(table)):
        raise UsageError(
            f"--from-store {store}: the store keeps no segments, they are on the topic for as long "
            "as that is retained: --input-topic"
        )
    return [str(table)]
