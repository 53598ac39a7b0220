"""The device on its own machine: `socket_server` and `ipc` (the agent's Unix socket), `device_lock`
(one agent a device), `maintenance` (status, drain, label, wipe).
"""
