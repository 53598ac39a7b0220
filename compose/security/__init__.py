"""Keys and certificates of a state folder: `certificates` (the SuperLink's TLS), `keyring` (signing
keys), `node_keys` and `node_registry` (which SuperNodes may take part).
"""
