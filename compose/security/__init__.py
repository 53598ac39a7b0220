"""Certificates and node keys of a state folder: `certificates` (the SuperLink's TLS) and
`node_registry` (the SuperNodes that are admitted)."""
