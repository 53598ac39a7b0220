"""One federated run, round by round. `run` is the loop; it knows no Flower.

participants (samples and invites devices), collector (the fleet as a transport; waits for replies),
update_intake (admits updates), checkpoint, promotion, event_log (`rounds`), fleet_reports (device
states on `fleet`), settings.
"""
