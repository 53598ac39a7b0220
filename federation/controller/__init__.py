"""The controller process: it starts runs when there is cause, follows them, and moves releases.

controller (the loop), triggers (when to start), run_tracker and run_recovery (state
of runs), flwr_cli (Flower's command), metrics. Needs neither Flower nor torch.
"""
