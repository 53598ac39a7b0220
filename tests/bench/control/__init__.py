"""What commands and the controller cost in a large fleet with a long past, on a real Kafka."""
