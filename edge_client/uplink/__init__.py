"""From the spool to Kafka: `uplink` sends in order, `in_flight` has the messages without an answer,
`messages` makes messages of frames, `refusals` remembers what the broker does not take,
`rate_limit` bounds the bytes per second.
"""
