"""The trainer's process: of low priority from its start, and without torch until there is work.

python -m edge_client.training TASK FD     see trainer_process.py
"""

import os
import select
import signal
import socket
import sys

START_S = 120.0  # for the first request, which the agent sends at once


def main(reference: str, fd: int) -> None:
    """Serve requests; end at once if the agent has closed its end of the socket."""
    os.nice(10)
    os.setsid()  # Linux shares the cores between sessions: see trainer_process.give_way
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which ends the trainer
    ready, _, _ = select.select([fd], [], [], START_S)
    with socket.socket(fileno=os.dup(fd)) as connection:
        if not ready or not connection.recv(1, socket.MSG_PEEK):
            return
    from edge_client.training.trainer_process import serve

    serve(reference, fd)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
