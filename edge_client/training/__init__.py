"""Fine-tuning on the device: `trainer_client` (in the agent) starts `trainer_process` (the child
with torch). `own_weights`: what a device trains for itself; `local_layers`: the layers that it does
not share.
"""
