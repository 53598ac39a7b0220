"""Fine-tuning on the device: `trainer_client` (in the agent) starts `trainer_process` (the child
with torch). `personalization`: the device's personal model; `local_layers`: the layers that it does
not share; `conditions`: whether it may train now.
"""
