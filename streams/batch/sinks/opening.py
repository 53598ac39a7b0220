"""The sink of a job by its output; a library is imported when its sink is opened."""

from streams.batch.records.documents import FILES, Specification
from streams.batch.sinks.loading import ObjectsSink, Sink


def open_sink(specification: Specification) -> Sink | None:
    """Return the sink of a job, None where its files are the output. Nothing is opened yet."""
    kind, place, table = (
        specification.output_format,
        specification.output,
        specification.settings.table,
    )
    if specification.in_files:
        return None
    if kind in FILES:
        return ObjectsSink(place, kind)
    if kind == "delta":
        from streams.batch.sinks.delta import DeltaSink

        return DeltaSink(place, specification.id)
    from streams.batch.sinks import databases

    kinds = {"duckdb": databases.DuckDbSink, "sqlite": databases.SqliteSink}
    return kinds.get(kind, databases.PostgresqlSink)(place, table, specification.id)
