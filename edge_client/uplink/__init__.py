"""From the spool to Kafka: `uplink` sends in order and bounds the messages in flight, `rate_limit`
bounds the bytes per second, `messages` makes messages of frames.
"""
