"""What the product is compared with; every program runs as a process, alone.

stock               a Flower app as Flower's own examples have it: FedAvg, a ClientApp with torch
limit               an aiokafka loop: the worker's messages and teacher, and nothing else
wax_flow            the worker's job in Bytewax
outlet              what that gets of a message, and does with closed windows
score_loop          a batch job without a job
"""
