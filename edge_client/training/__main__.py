"""The trainer's process, of low priority from its start.

python -m edge_client.training TASK FD     see trainer_process.py
"""

import os
import signal
import sys


def main(reference: str, fd: int) -> None:
    """Serve requests; end if the agent has closed its end of the socket."""
    os.nice(10)
    os.setsid()  # Linux shares the cores between sessions: see trainer_process.give_way
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which ends the trainer
    from edge_client.training.trainer_process import serve

    serve(reference, fd)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
