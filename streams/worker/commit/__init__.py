"""The numbered commit of a worker: effects first, position after.

committer (the steps), rows (what the store gets), publications (what `scores` and `windows` get),
dead_letters (what could not be understood or scored).
"""
