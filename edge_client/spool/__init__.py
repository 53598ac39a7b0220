"""The spool: a durable queue of append-only segment files, where events wait for the network.

queue (`Spool`: append, read, acknowledge), writer (from the loop's memory to the queue), frames
(the format), cursor (the reader's position), recovery (at start), eviction and compaction (at the
cap), limits. Knows nothing of Kafka.
"""
