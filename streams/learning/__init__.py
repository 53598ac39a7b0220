"""Plain torch loops that devices, server and worker share: fit, predict, clip, load weights.

The only place below `tasks` that imports torch. Knows streams.contract alone.
"""
