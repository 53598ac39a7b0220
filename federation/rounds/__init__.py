"""One federated run, round by round. `run` is the loop; it knows no Flower.

client_sampling (whom to ask), messages (the fleet as a transport), collector (waiting for replies),
update_intake and admission (what counts, and what refuses a NaN), quarantine, checkpoint and
resume, promotion, event_log (`rounds`), fleet_reports (what devices say on `fleet`).
"""
