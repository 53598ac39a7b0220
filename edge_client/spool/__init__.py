"""The spool: a durable queue of append-only segment files, where events wait for the network.

queue (`Spool`: append, read, acknowledge, what a start finds, the cap), writer (from the loop's
memory to the queue), frames (the format), cursor (the reader's position). Knows nothing of Kafka.
"""
