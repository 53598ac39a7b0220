"""`tidewheel up` and its parts: which Kafka, how Flower's processes start, who restarts what died.

up (the phases of a run), supervisor, broker, flower_processes (how SuperLink and SuperNodes are
started), preparation, state_dir (what lies where), progress.
"""
