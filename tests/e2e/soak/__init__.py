"""A month of a fleet in minutes: made-up devices with the real spool, uplink and downlink, on a
real Kafka with real workers and a real controller."""
