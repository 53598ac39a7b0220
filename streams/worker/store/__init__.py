"""The store: two Delta Lake tables and their fence.

delta_store (the only module that imports deltalake), position (of a partition, with snapshots),
maintenance (compaction on its own thread), query (DuckDB, and the server's event account).
"""
