"""The output of a batch job.

files          the output file of a shard
output         what --to names, and what a database, a table or objects must do
tables         databases (DuckDB, SQLite, PostgreSQL) and Delta tables
"""
