"""Promise 5: a device answers as promptly while it trains. A real agent and its trainer; when each
answer was given is written down in the agent's loop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_client.control.ipc import ask, call
from edge_client.control.socket_server import socket_path
from edge_client.inference.slots import Slots
from federation.bootstrap.onnx_export import export_graph
from streams.contract.errors import Retryable
from streams.contract.weights import payload
from streams.contract.work import AgentRequest, WorkRequest
from streams.runtime.key_files import create_key
from tests.edge_client.models import TINY, artifact, plain, tiny

ROOT = Path(__file__).parents[2]
SPEED = 50  # 100 segments a second
IDLE_S, LABELS, WAIT_S = 3.0, 64, 90.0
TRAINED_S = 4.0  # at least: many gaps fit into it
SHARE = 0.25  # of a training: as long a silence is none of the processor's, but of the loop

# argv: the times' file, "child" or "loop", and the words of `tidewheel`. With "loop" work is done
# on the thread that answers, between two segments, as it must not be.
PROGRAM = """
import queue, sys, threading, time
from edge_client.agent import Agent
from edge_client.inference.loop import InferenceLoop
from compose.cli.main import main

times, where = open(sys.argv[1], "a", buffering=1), sys.argv[2]
answer, work, jobs = InferenceLoop.answer, Agent._work, queue.Queue()

def timed(self, cut):
    while where == "loop" and not jobs.empty():
        jobs.get()()
    answer(self, cut)
    times.write(f"{time.monotonic()}\\n")

def on_the_loop(self, request, weights):
    done, found = threading.Event(), []
    def run():
        found.append(work(self, request, weights))
        done.set()
    jobs.put(run)
    done.wait()
    return found[0]

InferenceLoop.answer = timed
if where == "loop":
    Agent._work = on_the_loop
sys.argv = ["tidewheel", *sys.argv[3:]]
sys.exit(main())
"""


def longest_silences(folder: Path, where: str) -> tuple[float, float, float, int]:
    """Seconds: the longest pause between two answers when nothing else went on, and during a
    training; how long that took, and how many answers were given meanwhile."""
    key = create_key(folder / "keys" / "signing.pem")
    device = folder / "devices" / "d0"
    slots = Slots(device / "slots", tiny, [key.public_key()])
    slots.install(artifact(key, plain(1), 1, graph=export_graph(tiny, plain(1))))
    slots.close()
    words = ["edge", "run", TINY, "--device", "d0", "--state", str(folder), "--speed", str(SPEED)]
    command = [sys.executable, "-c", PROGRAM, str(folder / "times"), where, *words]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        agent = subprocess.Popen(
            [*command, "--kafka", "127.0.0.1:1", "--drain", "0.1"],
            cwd=ROOT, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        at = socket_path(device)
        wait_for_labels(agent, at, folder)
        train(at, epochs=1)  # the child has loaded torch from here on
        idle_began = time.monotonic()
        while time.monotonic() < idle_began + IDLE_S:
            time.sleep(0.05)  # the time itself is what is waited for
        idle_ended = time.monotonic()
        began = ended = idle_ended
        epochs = 100
        while ended - began < TRAINED_S:
            began, epochs = time.monotonic(), 3 * epochs
            train(at, epochs)
            ended = time.monotonic()
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)
    times = np.array([float(line) for line in (folder / "times").read_text().split()])
    idle = times[(times > idle_began) & (times < idle_ended)]
    busy = times[(times > began) & (times < ended)]
    pauses = np.diff(np.concatenate([[began], busy, [ended]]))
    return float(np.diff(idle).max()), float(pauses.max()), ended - began, len(busy)


def wait_for_labels(agent: subprocess.Popen[bytes], at: Path, folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    known = 0
    while known < LABELS:
        assert agent.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
        try:
            state = ask(at, AgentRequest(op="state")).state
        except Retryable:
            continue
        known = state.true_labels if state is not None else 0


def train(at: Path, epochs: int) -> None:
    weights = {name: tensor.numpy() for name, tensor in plain(1).state_dict().items()}
    request = WorkRequest(
        op="train", run="7", round=1, task=tiny.name, task_version=1, base="1-a", epochs=epochs,
        batch_size=16, learning_rate=0.001, node=1,
    )  # fmt: skip
    reply, _ = call(at, request, payload.encode_weights(weights, "float32"), WAIT_S)
    assert reply.error is None


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", ["child", "loop"])
def test_a_training_does_not_keep_answers_waiting(tmp_path: Path, where: str) -> None:
    """In the loop's thread, as the second case has it, it would: the test sees that."""
    idle, busy, took, answers = longest_silences(tmp_path, where)
    assert idle < SHARE * took
    if where == "child":
        assert busy < SHARE * took
        assert answers > 20 * took  # of 100 a second
    else:
        assert busy > 0.9 * took
        assert answers < 20 * took
