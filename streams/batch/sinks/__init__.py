"""The output of a batch job.

targets        what --to names
part_files     the output file of a shard
loading        what a database or a topic must do, and its rows
sql            the statements that databases share
delta_sink, duckdb_sink, sqlite_sink, postgresql_sink, kafka_sink   one each
"""
