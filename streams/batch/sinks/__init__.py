"""The output of a batch job.

targets        what --to names
part_files     the output file of a shard
loading        what a database, a topic or objects must do, and their rows
sql            the statements that databases share
delta_sink, duckdb_sink, sqlite_sink, postgresql_sink, kafka_sink, objects_sink   one each
"""
