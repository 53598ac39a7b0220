"""Servers that tests talk to: Kafka, S3, PostgreSQL, MQTT, nginx, a collector of spans."""
