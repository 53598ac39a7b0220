"""How the fleet learns: rounds, aggregation, evaluation, versions, rollout.

server_app is Flower's ServerApp and settings its configuration; both are entry points.

rounds        one run: sampling, collecting, admission, checkpoint, promotion
aggregation   from admitted updates to the next weights
evaluation    the promotion gate and its evidence
bootstrap     the first model and the teacher
controller    when a run starts, and what becomes of it
registry      signed versions, decisions, keys
rollout       from a canary to all devices, or back

Imports streams.contract and the shared parts of streams; never streams.worker, edge_client or
compose. flwr is imported in server_app alone.
"""
