"""Fine-tuning on the device: `trainer_client` (the agent's side) starts `trainer_process` (the
child that holds torch). `personalization` is the device's own copy of a version, `local_layers`
what a device does not share, `conditions` whether it may train now.
"""
