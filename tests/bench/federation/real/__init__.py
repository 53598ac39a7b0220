"""Measurements on real processes: SuperLink, SuperNodes and ClientApps, or another framework's.

stage, processes   what all need: people's data, a registry, the processes
devices            our devices' trainers and sockets in one process
stock              what a user of Flower writes
flare              what a user of NVFlare writes
speed, dropouts, memory   the sections
"""
