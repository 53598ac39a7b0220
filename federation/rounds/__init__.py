"""One federated run, round by round. `run` is the loop; it knows no Flower.

participants (samples and invites devices), collector (the fleet as a transport; waits for replies),
update_intake (admits updates), checkpoint, promotion, event_log (`rounds`), fleet_reports (device
states on `fleet`), settings.

How admitted updates become the next weights: `strategies.make` gives the aggregator of a task by
the name of its strategy. `aggregator` holds the loop and the treatment of each kind of tensor
(learned, statistics, integers); `strategies` the algorithms, in numpy. `privacy` is central
differential privacy. These know nothing of Flower, Kafka or torch.
"""
