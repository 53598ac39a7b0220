"""The device: inference on its own readings, durable events, and training.

agent is the device, process runs it, client_app is what Flower starts; settings and metrics
belong to the agent.

sources     readings: recorded, standard input, MQTT
inference   segments to answers, and which model version answers
spool       the durable queue of events that wait for the network
uplink      from the spool to Kafka
releases    from Kafka to the device: decisions and artifacts
samples     segments to learn from, and their labels
training    both sides of the trainer, and the personal model
control     the Unix socket, the device's lock, and commands on its own machine

Imports streams.contract and the shared parts of streams; never streams.worker, federation or
compose. The agent holds no torch.
"""
