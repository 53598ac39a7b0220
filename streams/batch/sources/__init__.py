"""The input of a batch job.

places         local files and URLs
inputs         the files that are named, and what must be right before a job is submitted
plan           every file hashed and cut into shards
tables, text   rows of Parquet and Delta; of CSV and JSON Lines
selection      which rows are scored
readings       rows that are readings, cut into segments shard by shard as on the device
"""
