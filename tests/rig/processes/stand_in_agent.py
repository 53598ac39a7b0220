"""A stand-in for a device's agent: answers hand-offs with real training of tiny models."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from edge_client.ipc import is_work, receive_frame, send_frame
from edge_client.training.trainer_process import compare
from federation.bootstrap.dataset import segments_of_device, stack
from federation.evaluation.accuracy import score
from streams.contract.errors import MalformedRecord
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest
from streams.learning import learning

Trick = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class StandInAgent:
    """Listens at `path`, trains on the device's first segments; `trick` alters what it returns."""

    def __init__(self, task: Task, device: str, path: Path, trick: Trick | None = None) -> None:
        self.task, self.device, self.path, self.trick = task, device, path, trick
        self.requests: list[WorkRequest] = []
        self.node: int | None = None
        self._served: dict[str, np.ndarray] = {}
        data = stack(task, [segments_of_device(task, device)])
        cut = len(data.labels) * 3 // 4
        self.x, self.y = data.segments[:cut], data.labels[:cut]
        self.held_x, self.held_y = data.segments[cut:], data.labels[cut:]
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _connections(self) -> Iterator[socket.socket]:
        """Yield connections until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                yield self._socket.accept()[0]

    def _serve(self) -> None:
        for connection in self._connections():
            # A SuperNode may be killed meanwhile, also between connecting and its request.
            with connection, contextlib.suppress(OSError, MalformedRecord):
                header, body = receive_frame(connection)
                if not is_work(header):  # the SuperNode has joined
                    self.node = AgentRequest.decode(header).node
                    send_frame(connection, AgentReply().encode(), b"")
                    continue
                request = WorkRequest.decode(header)
                self.requests.append(request)
                reply, weights = self._work(request, body)
                send_frame(connection, reply.encode(), weights)

    def _work(self, request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        received = payload.to_float32(payload.unpack(body))
        model = learning.load_state(self.task.build_model(), received)
        reply = WorkReply(device=self.device, samples=len(self.y), base=request.base)
        if request.op == "evaluate":
            served = learning.load_state(self.task.build_model(), self._served or received)
            outputs = [learning.predict(each, self.held_x) for each in (served, model)]
            metrics = compare(self.task, (outputs[0], outputs[1]), self.held_y)
            return reply.replace(metrics=metrics), b""
        self._served = self._served or received  # what the first round sends
        result = score(self.task, learning.predict(model, self.held_x), self.held_y)
        metrics = {"correct": round(result.value * result.of), "evaluated": result.of}
        learning.fit(
            model,
            len(self.y),
            learning.segment_loss(self.task, model, self.x, self.y),
            epochs=request.epochs,
            batch_size=request.batch_size,
            learning_rate=request.learning_rate,
            seed=request.seed,
        )
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        if self.trick is not None:
            weights = self.trick(weights)
        reply = reply.replace(metrics=metrics)
        return reply, payload.encode_update(weights, received, request.payload)
