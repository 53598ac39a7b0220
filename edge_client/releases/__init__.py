"""From Kafka to the device: `downlink` follows `releases` and `scores`, `fetch` downloads a version
and keeps received chunks across restarts.
"""
