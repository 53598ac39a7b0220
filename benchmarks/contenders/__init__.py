"""What the product is compared with; every program runs as a process, alone.

stock               a Flower app as Flower's own examples have it: FedAvg, a ClientApp with torch
limit               an aiokafka loop: the worker's messages and teacher, and nothing else
faust_app, wax_flow the worker's job in plain Faust and Bytewax
outlet              what those two get of a message, and do with closed windows
score_loop          a batch job without a job
"""
