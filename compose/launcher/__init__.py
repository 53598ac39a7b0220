"""`tidewheel up` and its parts: which Kafka, how Flower's processes start, who restarts what died.

up (the phases of a run), supervisor, broker, flower_processes (how SuperLink and SuperExec are
started), preparation, state_dir (what lies where), progress; of a state folder the certificates
(the SuperLink's TLS) and the node_registry (the SuperNodes that are admitted).
"""
