"""The controller process: it starts runs when there is cause, follows them, and moves releases.

controller (the loop), triggers (when to start), run_tracker (state of runs), run_recovery (resumes
dead ones), flwr_cli (Flower's command), metrics, tracking (MLflow). Needs neither Flower nor torch.
"""
