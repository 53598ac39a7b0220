"""The batch demo: every recording of the fleet, scored offline by jobs that survive a kill.

demo         `make demo-batch`
recordings   the readings of the fleet's devices as Parquet
"""
