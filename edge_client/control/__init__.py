"""Control of a device on its own machine: `socket_server` and `ipc` (the agent's Unix socket),
`device_lock` (one agent per device), `maintenance` (status, drain, label, wipe).
"""
