"""The Flower ClientApp of a simulation: nodes train in this process on recordings, without agents,
Kafka and devices.

Node n simulates the n-th device of the task's fleet. Further nodes start again with the first
device as `<device>.1`, then `<device>.2`; nodes that share a device's recordings each learn from
half of its training rows, drawn with the node's seed. Every segment has its true label. The rows
are trained as on a device, by `trainer_process.work`, with the round's seed plus the node's number.
With `Training.shared`, a node's local layers are in

    <state>/simulated/<run>/<device>.safetensors

what it remembers of a round of a run with SCAFFOLD in `<device>.scaffold` beside it,

and `served.base` in the same folder is the version that all nodes serve, for comparisons.

Torch stays loaded between messages, because Flower's engine, Ray, keeps its processes.
"""

import itertools
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from flwr.app import Context, Message

from edge_client.client_app import answer, client_app
from edge_client.samples.sample_file import Columns, write_stream
from edge_client.samples.splits import HELD_OUT, NEITHER, split_of
from edge_client.training.trainer_client import shared_file
from edge_client.training.trainer_process import work
from streams.contract.errors import UsageError
from streams.contract.task import load_task
from streams.contract.weights import payload
from streams.contract.work import Op, TrainerJob, WorkReply, WorkRequest
from streams.runtime.disk import write_atomic
from streams.segments.segmentation import segments_of

SERVED = "served.base"  # not a possible name of a device's file
RECORDINGS = 64  # devices whose rows are cached between messages


def _done(message: Message, context: Context, op: Op) -> Message:
    reference, state = (str(context.run_config[name]) for name in ("task", "state"))
    node, nodes = (int(context.node_config[name]) for name in ("partition-id", "num-partitions"))
    simulated = Simulated(reference, node, nodes, Path(state) / "simulated" / str(context.run_id))
    return answer(message, context, op, simulated.device, simulated.work)


app = client_app(_done)


class Simulated:
    """Node `node` of `nodes`, counted from 0."""

    def __init__(self, reference: str, node: int, nodes: int, folder: Path) -> None:
        self._reference, self._node, self._folder = reference, node, folder
        self._task = load_task(reference)
        fleet = self._task.device_names("fleet")
        if not fleet:
            raise UsageError(f"task {self._task.name!r} has no device of role 'fleet'")
        again, number = divmod(node, len(fleet))
        self._recorded, self._alone = fleet[number], nodes <= len(fleet)
        self.device = f"{fleet[number]}.{again}" if again else fleet[number]

    def work(self, request: WorkRequest, block: bytes) -> tuple[WorkReply, bytes]:
        torch.set_num_threads(1)  # many nodes train at the same time
        own = request.model_copy(update={"seed": request.seed + self._node})
        served = self._served(request, block)
        with shared_file(self._folder) as (file, name):
            write_stream(file, [self.rows()], {})
            file.flush()
            job = TrainerJob(
                device=self.device, request=own, samples=name, stop=str(self._folder / "stop"),
                own=str(self._folder / f"{self.device}.safetensors"),
                scaffold=str(self._folder / f"{self.device}.scaffold"), served=served,
            )  # fmt: skip
            return work(self._task, job, block)

    def _served(self, request: WorkRequest, block: bytes) -> str:
        """Return the file of the version that all nodes serve: the weights of the first round."""
        path = self._folder / SERVED
        if request.op == "train" and request.round == 1 and not path.exists():
            weights = payload.to_float32(payload.unpack(block))
            write_atomic(path, safetensors.numpy.save(weights))
        return str(path) if path.exists() else ""

    def rows(self) -> Columns:
        """Return the rows that a device writes for its trainer."""
        rows = _recorded(self._reference, self._recorded)
        if self._alone:
            return rows
        train = np.flatnonzero(~rows["held_out"])
        drawn = np.random.default_rng(self._node).permutation(train)[: (len(train) + 1) // 2]
        used = rows["held_out"].copy()
        used[drawn] = True
        return {name: column[used] for name, column in rows.items()}


@lru_cache(maxsize=RECORDINGS)
def _recorded(reference: str, device: str) -> Columns:
    """Return a device's labelled segments with the device's split, as many as it would keep."""
    task = load_task(reference)
    kept = itertools.islice(segments_of(task.readings(device), task), task.training.samples)
    rows = [
        (segment, label, split_of(task, first, last))
        for first, last, segment, label in kept
        if label is not None
    ]
    used = [row for row in rows if row[2] != NEITHER]
    count = len(used)
    return {
        "segment": np.array([row[0] for row in used], np.float32).reshape(
            count, *task.segment_shape
        ),
        "label": np.array([row[1] for row in used], np.float32).reshape(count, task.label_size),
        "weight": np.ones(count, np.float32),
        "held_out": np.array([row[2] == HELD_OUT for row in used], np.bool_),
        "true": np.ones(count, np.bool_),
    }
