"""The output of a batch job.

files          what --to names, the output file of a shard, objects
tables         databases (DuckDB, SQLite, PostgreSQL) and Delta tables
"""
