"""The store: two Delta Lake tables and their fence.

delta_store (the only module that imports deltalake), position (where a partition stands),
maintenance (compaction on a thread of its own), query (DuckDB, and the server's event account).
"""
