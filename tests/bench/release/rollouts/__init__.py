"""How often a rollout is misjudged, in simulated rollouts on real people's windows.

candidates   versions that are equally good (trained again with another seed) and worse ones
simulation   one rollout: who is in the canary, which windows come, and the verdict
bounds       an upper bound of a share, where rollouts share people and models
verdicts     the section: all rollouts, in two processes
"""
