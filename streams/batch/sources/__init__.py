"""The input of a batch job.

inputs         what is named: files, their format, and their columns
places         the seam to fsspec: local files and URLs
delta_table    the seam to Delta tables: the files of one
stored         a worker's store
tables         the seam to Parquet and Arrow IPC
table_rows     a shard of these as rows
text_lines     where the rows of CSV and JSON Lines end
text_objects   rows of these as objects
text_rows      a shard of these as rows
selection      the seam to DuckDB: which rows are scored
plan           hashing the input, and cutting it into shards
reading        a shard of any format as rows
"""
