"""The numbered commit of a worker: effects first, position after.

committer (the steps), publications (messages on `scores` and `windows`), publishing (until the
broker has them), dead_letters (messages that cannot be decoded or scored), window_spans (traces).
"""
