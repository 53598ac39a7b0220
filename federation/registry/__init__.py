"""Signed model versions and the decisions about them.

registry (the chain and its files), object_store (folder or bucket), publisher (what devices get),
catalog and audit (reading and verifying), key_rotation, manual (promote, roll back, prune), restore
and published_chain (a lost registry from Kafka).
"""
