"""A device that wants to harm the fleet: a real SuperNode, with an agent of its own that trains
nothing. It goes a step of its own from what it is sent, and claims as many samples as admission
takes; twice the median of all claims is what counts."""

import os
import signal
import socket
import subprocess
import threading
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from compose.launcher import flower_processes
from compose.launcher.state_dir import StateDir
from edge_client.ipc import SocketServer, socket_path
from edge_client.supernode import NodeSettings, command
from federation.admission import MAX_SAMPLES
from streams.contract.weights import payload
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest

NAME = "mallory"

Tensors = dict[str, np.ndarray]


class HostileDevice:
    """Takes part while the block lasts; `step` is what it adds to the weights of each round,
    float32, and may be set to another one between two runs. Its SuperNode is there while there is a
    SuperLink, which `up` starts for a run."""

    def __init__(self, state: Path, step: Tensors) -> None:
        self._state, self.step = state, step
        self._folder = StateDir(state).device(NAME)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = StateDir(state).logs / f"supernode-{NAME}.log"
        self._service = SocketServer(socket_path(self._folder), self._work, self._tell)
        self._done = threading.Event()
        self._follower = threading.Thread(target=self._follow, name=NAME)

    def __enter__(self) -> Self:
        self._service.start()
        self._follower.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._done.set()
        self._follower.join()
        self._service.stop()

    def _follow(self) -> None:
        """Start the SuperNode whenever a SuperLink listens, and end it with the SuperLink."""
        node: subprocess.Popen[bytes] | None = None
        while not self._done.wait(0.2):
            address = self._superlink()
            if node is None and _listens(address):
                node = self._start(address)
            elif node is not None and not _listens(address):
                _end(node)
                node = None
        if node is not None:
            _end(node)

    def _superlink(self) -> tuple[str, int]:
        path = self._state / "flower" / "home" / "config.toml"
        found = tomllib.loads(path.read_text())["superlink"][flower_processes.CONNECTION]
        return flower_processes.HOST, int(found["address"].rpartition(":")[2])

    def _start(self, address: tuple[str, int]) -> subprocess.Popen[bytes]:
        resident = NodeSettings(
            device=NAME,
            agent=str(socket_path(self._folder)),
            superlink="{}:{}".format(*address),
        )
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command(resident), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _work(self, request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        reply = WorkReply(device=NAME, samples=MAX_SAMPLES, base=request.base)
        if request.op == "evaluate":
            return reply.replace(error="it says nothing"), b""
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


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def _end(node: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(node.pid, number)
            node.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
