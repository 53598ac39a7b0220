"""The SQL that databases share: names, the ledger of shards, and counts."""

from streams.batch.sinks.loading import LEDGER


def identifier(name: str) -> str:
    """Return a name as SQL has it, quoted."""
    return '"' + name.replace('"', '""') + '"'


def ledger_sql() -> str:
    """Create the ledger: a row for each shard whose rows are in the table, with their
    generation."""
    return (
        f"CREATE TABLE IF NOT EXISTS {LEDGER} (job TEXT NOT NULL, shard BIGINT NOT NULL, "
        "generation BIGINT NOT NULL, PRIMARY KEY (job, shard))"
    )


def known_sql(first: str = "?", second: str = "?", third: str = "?") -> str:
    """Count the ledger's rows of a job and a shard that are of a generation or a later one."""
    return (
        f"SELECT count(*) FROM {LEDGER} "
        f"WHERE job = {first} AND shard = {second} AND generation >= {third}"
    )


def note_sql(first: str = "?", second: str = "?", third: str = "?") -> str:
    """Add a shard to the ledger, or its new generation."""
    return (
        f"INSERT INTO {LEDGER} VALUES ({first}, {second}, {third}) "
        "ON CONFLICT (job, shard) DO UPDATE SET generation = excluded.generation"
    )


def forget_sql(table: str, first: str = "?", second: str = "?") -> str:
    """Delete the rows of a shard."""
    return f"DELETE FROM {identifier(table)} WHERE job = {first} AND shard = {second}"


def count_sql(table: str, first: str = "?") -> str:
    """Count the rows of a job."""
    return f"SELECT count(*) FROM {identifier(table)} WHERE job = {first}"
