"""The controller process: it starts runs when there is cause, follows them, and moves releases.

controller (the loop), triggers and quiet_hours (when), run_tracker and run_recovery (what became of
a run), flwr_cli (Flower's command), metrics. Needs neither Flower nor torch.
"""
