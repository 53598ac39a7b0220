"""One federated run, round by round. `run` is the loop; it knows no Flower.

client_sampling (which nodes get work), messages (the fleet as a transport), collector (waits for
replies), update_intake (admits updates), checkpoint and resume, promotion, event_log (`rounds`),
fleet_reports (device states on `fleet`), run_spans (the run's trace), settings.
"""
