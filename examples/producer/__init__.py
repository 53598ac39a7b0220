"""Events from your own producer: kafka-python and pyarrow, nothing of Tidewheel."""
