"""How admitted updates become the next weights.

`strategies.make` gives the aggregator of a task by the name of its strategy. `aggregator` holds the
loop and the treatment of each kind of tensor (learned, statistics, integers);
`strategies` the algorithms, in numpy. `privacy` is central differential privacy. Knows nothing of
Flower, Kafka or torch.
"""
