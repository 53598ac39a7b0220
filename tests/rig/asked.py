"""What a store says."""

from typing import Any

from streams.worker.store.query import open_store
from streams.worker.store.tables import Place, has_table


def asked(store: Place, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a query; none where there is no store yet."""
    if not has_table(store, "aged"):  # the last one that a worker makes
        return []
    with open_store(store) as connection:
        return connection.execute(sql, list(values)).fetchall()
