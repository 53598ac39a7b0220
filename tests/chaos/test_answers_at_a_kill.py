"""What a SIGKILL costs between an answer and the disk: the answers of the last moments alone, and
of a recording nothing, because it is taken up behind the last event in the spool."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_client.inference.slots import Slots
from edge_client.spool.frames import EVENTS
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder
from federation.bootstrap.onnx_export import export_graph
from streams.contract.events.compact import decode_block
from streams.contract.events.messages import task_layout
from streams.runtime.key_files import create_key
from tests.rig.made_up.models import TINY, artifact, plain, tiny

ROOT = Path(__file__).parents[2]
SPEED, KILLS, ANSWERS, WAIT_S = 50, 4, 60, 60.0
IN_MEMORY_S = 1.0  # the recorder writes twice a second; a busy machine's processor is elsewhere
HOP_US = 500_000  # of the tiny task

# The agent as it is; when each answer was given is written down, which a kill does not undo.
PROGRAM = """
import os, sys, time
from edge_client.inference.loop import InferenceLoop
from compose.cli.main import main

times = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
answer = InferenceLoop.answer

def timed(self, cut):
    answer(self, cut)
    os.write(times, f"{time.monotonic()}\\n".encode())

InferenceLoop.answer = timed
sys.argv = ["tidewheel", *sys.argv[2:]]
sys.exit(main())
"""


class Device:
    """The device d0 in a state folder, without a broker in reach."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "devices" / "d0"
        key = create_key(folder / "keys" / "signing.pem")
        slots = Slots(self.home / "slots", tiny, [key.public_key()])
        slots.install(artifact(key, plain(1), 1, graph=export_graph(tiny, plain(1))))
        slots.close()

    def killed_after(self, answers: int, times: Path) -> tuple[np.ndarray, float]:
        """When this life's answers were given, and when it was killed."""
        command = [sys.executable, "-c", PROGRAM, str(times), "edge", "run", TINY, "--device", "d0"]
        command += ["--state", str(self.folder), "--speed", str(SPEED), "--kafka", "127.0.0.1:1"]
        with (self.folder / "log").open("ab") as log:
            agent = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + WAIT_S
            while not times.exists() or len(times.read_bytes().splitlines()) < answers:
                assert agent.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)
        finally:
            agent.kill()
            killed_s = time.monotonic()
            agent.wait(10)
        return np.array([float(line) for line in times.read_text().split()]), killed_s

    def event_times(self) -> list[int]:
        """Of all events in the spool, in their order."""
        spool, layout = Spool(queue_folder(self.home, SPOOL, tiny)), task_layout(tiny)
        found: list[int] = []
        for frame in spool.read(spool.position, 1 << 30):
            assert frame.kind == EVENTS
            found += decode_block(layout, frame.payload, frame.first, 1000).times.tolist()
        return found


@pytest.mark.timeout(240)
def test_a_kill_costs_the_answers_of_the_last_moments_and_of_a_recording_nothing(
    tmp_path: Path,
) -> None:
    device, before = Device(tmp_path), 0
    for life in range(KILLS):
        given, killed_s = device.killed_after(ANSWERS * (life + 1), tmp_path / f"times-{life}")
        produced = len(device.event_times()) - before
        assert produced <= len(given) + 1  # it was in the spool before its line was written
        lost = given[produced:]
        assert (lost > killed_s - IN_MEMORY_S).all(), killed_s - lost
        before += produced
    steps = np.diff(device.event_times())
    assert (steps == HOP_US).all(), steps[steps != HOP_US]
