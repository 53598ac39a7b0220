"""From Kafka to the device: `downlink` follows `releases` and `scores`, `fetch` gets a version's
bytes, `partial_download` keeps what has arrived across restarts.
"""
