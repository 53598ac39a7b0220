"""Keys and certificates of a state folder: `certificates` (the SuperLink's TLS), `keyring` (signing
keys) and `node_registry` (the SuperNodes that are admitted)."""
