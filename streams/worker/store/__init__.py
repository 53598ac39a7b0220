"""The store: two Delta Lake tables and their fence.

delta_store (commits, and maintenance on its own thread), position (of a partition, with snapshots),
query (DuckDB, and the server's event account).
"""
