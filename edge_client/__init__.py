"""The device: it answers on its own readings, keeps what it answered, and learns.

agent is the one long-lived process, client_app what Flower starts, simulation_app a device without
an agent; settings and metrics are the agent's.

sources     readings: recorded, standard input, MQTT
inference   segments to answers, and which model version answers
spool       where an event waits for the network
uplink      from the spool to Kafka
releases    from Kafka to the device: decisions and artifacts
samples     what the device remembers to learn from, and the labels it has
training    the trainer's two sides, and the device's own copy of a model
control     the Unix socket, the device's lock, and commands on its own machine

Imports streams.contract and the shared parts of streams; never streams.worker, federation or
compose. The agent holds no torch.
"""
