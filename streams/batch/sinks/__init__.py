"""The output of a batch job.

targets        what --to names
files          the output file of a shard
loading        what a database, a table or objects must do, and their rows; objects
delta          Delta tables
databases      DuckDB, SQLite, PostgreSQL
"""
