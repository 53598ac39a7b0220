"""The Faust worker: reads `events`, closes windows, scores them, writes the store, publishes.

app and agents (the only modules that import faust), settings, metrics, and

windows   which events belong together, when a window is closed, and its events as scored rows
commit    the numbered commit: store, publish, acknowledge
store     the Delta tables, their fence, and the positions of partitions

Knows streams.contract and the shared parts of streams, never federation or edge_client.
"""
