"""The input of a batch job.

inputs         what is named: files, their format and columns; a shard of any format as rows
places         the seam to fsspec: local files and URLs
tables         the seam to Parquet, Arrow IPC and Delta tables
table_rows     a shard of these as rows
text           lines of JSON Lines and records of CSV, as objects
text_rows      a shard of these as rows
selection      the seam to DuckDB: which rows are scored
plan           hashing the input, and cutting it into shards
"""
