"""From the spool to Kafka: `uplink` sends in order with a bound on what is in flight; `rate_limit`
and `sampling` reduce what is sent on a metered line.
"""
