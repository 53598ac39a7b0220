"""From Kafka to the device: `downlink` follows `releases` and `scores`, `fetch` downloads a
version, `partial_download` keeps received chunks across restarts.
"""
