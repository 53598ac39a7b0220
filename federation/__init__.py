"""Federated learning: rounds, evaluation, versions, rollout.

server_app is Flower's ServerApp, an entry point.

rounds        one run: sampling, collecting, aggregation, checkpoints, promotion
admission     the checks of an update, and the quarantine of nodes
evaluation    the promotion gate and its evidence
bootstrap     the first model and the teacher
controller    starts runs and follows them
registry      signed versions, decisions, keys
rollout       from a canary to all devices, or back

Imports streams.contract and the shared parts of streams; never streams.worker, edge_client or
compose. flwr is imported in server_app alone.
"""
