"""The device: inference on its own readings, durable events, and training.

agent is the device, process runs it; settings and metrics belong to the agent. downlink follows
`releases` and `scores`, fetch downloads a version and keeps received chunks across restarts.
participation and supernode are its part in a federated run, client_app is what Flower calls. ipc is
the agent's Unix socket and the lock of its folder, maintenance are the commands on its own machine.

sources     readings: recorded, standard input, MQTT
inference   segments to answers, and which model version answers
spool       the durable queue of events that wait for the network
uplink      from the spool to Kafka
samples     segments to learn from, and their labels
training    both sides of the trainer, and the personal model

Imports streams.contract and the shared parts of streams; never streams.worker, federation or
compose. The agent holds no torch.
"""
