"""Control of a device on its own machine: `ipc` (both sides of the agent's Unix socket),
`device_lock` (one agent per device), `maintenance` (status, drain, label, wipe).
"""
