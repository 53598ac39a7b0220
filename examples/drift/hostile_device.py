"""A device that wants to harm the fleet: a real SuperNode, with an agent of its own that trains
nothing. It goes a step of its own from what it is sent, and claims as many samples as admission
takes; twice the median of all claims is what counts."""

import os
import signal
import subprocess
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from compose.launcher import flower_processes
from compose.launcher.state_dir import StateDir
from edge_client.control.socket_server import SocketServer, socket_path
from edge_client.supernode import NodeSettings, command
from federation.admission import MAX_SAMPLES
from streams.contract.errors import ProcessFailed
from streams.contract.weights import payload
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest

NAME = "mallory"
ONLINE_S = 60.0

Tensors = dict[str, np.ndarray]


class HostileDevice:
    """Takes part while the block lasts; `step` is what it adds to the weights of each round,
    float32, and may be set to another one between two runs."""

    def __init__(self, state: Path, step: Tensors) -> None:
        self._state, self.step = state, step
        self._folder = StateDir(state).device(NAME)
        self._log = StateDir(state).logs / f"supernode-{NAME}.log"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        service = SocketServer(socket_path(self._folder), self._work, self._tell)
        service.start()
        self._stack.callback(service.stop)
        resident = NodeSettings(
            device=NAME,
            agent=str(socket_path(self._folder)),
            superlink=f"{flower_processes.HOST}:{self._superlink_port()}",
            resident=True,
        )
        with self._log.open("ab") as log:
            node = subprocess.Popen(
                command(resident), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._stack.callback(_end, node)
        self._await_online(node)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _superlink_port(self) -> int:
        path = self._state / "flower" / "home" / "config.toml"
        found = tomllib.loads(path.read_text())["superlink"][flower_processes.CONNECTION]
        return int(found["address"].rpartition(":")[2])

    def _await_online(self, node: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + ONLINE_S
        while f"{NAME}: node " not in self._log.read_text(errors="replace"):
            if node.poll() is not None or time.monotonic() > deadline:
                self._stack.close()
                raise ProcessFailed(f"{NAME}'s SuperNode is not let in: see {self._log}")
            time.sleep(0.2)

    def _work(self, request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        reply = WorkReply(device=NAME, samples=MAX_SAMPLES, base=request.base)
        if request.op == "evaluate":
            return reply.model_copy(update={"error": "it says nothing"}), b""
        received = payload.to_float32(payload.unpack(body))
        weights = {
            name: value
            if "running_var" in name or value.dtype.kind != "f"
            else value + self.step[name].astype(value.dtype)
            for name, value in received.items()
        }
        return reply, payload.encode_update(weights, received, request.payload)

    @staticmethod
    def _tell(_question: AgentRequest) -> AgentReply:
        return AgentReply(error="it tells nothing")


def _end(node: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(node.pid, number)
            node.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
