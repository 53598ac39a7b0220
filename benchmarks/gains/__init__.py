"""Whether every device gains: drift, hostile devices, ways to learn. All of it in two processes,
without Kafka and Flower, by the product's trainer, admission, aggregation, gate and detector."""
