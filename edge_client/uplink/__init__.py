"""From the spool to Kafka: `uplink` sends in order, `messages` makes messages of frames, knows
which have no answer and remembers what the broker does not take, `pacing` bounds the bytes a second
and says when a heartbeat is due, `task_queues` are those of each task version.
"""
