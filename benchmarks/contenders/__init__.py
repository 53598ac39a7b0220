"""What the product is compared with; every program runs as a process, alone.

limit       an aiokafka loop: the worker's messages and teacher, and nothing else
score_loop  a batch job without a job
"""
