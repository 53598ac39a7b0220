"""The contenders, a module each; every one runs as a process of its own, alone.

worker       `tidewheel worker` as a user starts it, with its default settings
limit        a hand-written aiokafka loop: the same messages, the same teacher, nothing else
kafka_ml     Kafka-ML's inference loop: a message, a forward pass and a flush for every row
quix_app     the worker's job in Quix Streams
wax_flow     the worker's job in Bytewax
faust_app    the worker's job in plain Faust

pieces       what the last three get of ours: a message as pieces of windows
outlet       what they do with closed windows: score, store, publish
sealed       how far the worker's store has come
"""
