"""A simulation runs the rounds of a fleet, and learns what they learn."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.numpy
import torch

from compose.launcher.simulation import Simulation, simulate
from edge_client.simulation_app import Simulated
from federation.admission.update import Update
from federation.aggregation import strategies
from federation.registry.registry import Registry
from federation.rounds import checkpoint
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import WorkRequest
from tests.federation.conftest import TINY
from tests.rig.unwrap import unwrap

DEVICES, ROUNDS = 8, 2  # of a task with six
Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the simulated devices have it: with more, sums come out otherwise in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def request(task: Task, number: int) -> WorkRequest:
    t = task.training
    return WorkRequest(
        op="train", run="1", round=number, task=task.name, task_version=task.version, base="1",
        epochs=t.epochs, batch_size=t.batch_size, learning_rate=t.learning_rate,
        seed=int.from_bytes(hashlib.sha256(f"0/{number}".encode()).digest()[:4]),  # as a run's
    )  # fmt: skip


def listening() -> set[str]:
    """The addresses on which processes below this one accept connections."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    found = psutil.net_connections("tcp")
    return {c.laddr.ip for c in found if c.pid in ours and c.status == psutil.CONN_LISTEN}


def without_ray(task: Task, weights: Tensors, folder: Path) -> Tensors:
    """What the same rounds come to in this process."""
    aggregator = strategies.make("fedavg")
    for number in range(1, ROUNDS + 1):
        updates = []
        for node in range(DEVICES):
            device = Simulated(TINY, node, DEVICES, folder)
            reply, block = device.work(
                request(task, number), payload.encode_weights(weights, "float32")
            )
            trained = payload.restore_update(payload.unpack(block), weights)
            updates.append(
                Update(device.device, task.name, task.version, "1", reply.samples, trained)
            )
        weights = aggregator.aggregate(updates, weights)
    return weights


def test_it_comes_to_what_the_same_rounds_come_to_without_ray(
    tiny: Task, registry: Registry, tmp_path: Path
) -> None:
    served = unwrap(registry.serving())
    addresses: set[str] = set()
    run = simulate(
        Simulation(TINY, DEVICES, tmp_path, {"rounds": ROUNDS}),
        lambda _text: addresses.update(listening()),
    )
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert [found.admitted for found in run.rounds] == [DEVICES] * ROUNDS
    assert [found.refused for found in run.rounds] == [{}] * ROUNDS
    assert run.rounds[-1].held_out is not None
    assert run.outcome.startswith("promoted 2-")
    assert run.gate["devices_segments"] > 100  # nodes compare with what the first round sent
    last = unwrap(checkpoint.latest(tmp_path / "runs", run.run))
    first = dict(sorted(safetensors.numpy.load(served.files[WEIGHTS]).items()))
    expected = without_ray(tiny, first, tmp_path)
    for name, value in expected.items():
        np.testing.assert_array_equal(last.weights[name], value)


def test_nodes_that_share_a_device_learn_from_rows_of_their_own(tmp_path: Path) -> None:
    nodes = [Simulated(TINY, node, 14, tmp_path) for node in range(14)]
    names = [node.device for node in nodes]
    assert names[:2] + names[6:8] + names[12:] == ["d0", "d1", "d0.1", "d1.1", "d0.2", "d1.2"]
    whole, first, second = (n.rows() for n in (Simulated(TINY, 0, 6, tmp_path), nodes[0], nodes[6]))
    count = int((~whole["held_out"]).sum())
    assert [int((~rows["held_out"]).sum()) for rows in (first, second)] == [(count + 1) // 2] * 2
    assert not np.array_equal(first["segment"], second["segment"])
    held_out = [rows["segment"][rows["held_out"]] for rows in (whole, first, second)]
    assert np.array_equal(held_out[0], held_out[1])
    assert np.array_equal(held_out[0], held_out[2])


def test_what_a_node_keeps_for_itself_stays_with_it(tiny: Task, tmp_path: Path) -> None:
    file = tmp_path / "partly.py"
    file.write_text(
        f"import dataclasses\nfrom streams.contract.task import load_task\n"
        f"tiny = load_task({TINY!r})\n"
        "shared = dataclasses.replace(tiny.training, shared=('0',))\n"
        "task = dataclasses.replace(tiny, training=shared)\n"
    )
    first = {name: tensor.numpy() for name, tensor in tiny.build_model().state_dict().items()}
    device = Simulated(f"{file}:task", 0, 6, tmp_path / "kept")
    _, block = device.work(request(tiny, 1), payload.encode_weights(first, "float32"))
    sent = payload.restore_update(payload.unpack(block), first)
    kept = safetensors.numpy.load((tmp_path / "kept" / "d0.safetensors").read_bytes())
    assert np.array_equal(sent["4.weight"], first["4.weight"])
    assert set(kept) == {"4.weight", "4.bias"}


def test_a_task_without_a_fleet_cannot_be_simulated(tmp_path: Path) -> None:
    file = tmp_path / "alone.py"
    file.write_text(
        f"import dataclasses\nfrom streams.contract.task import load_task\n"
        f"task = dataclasses.replace(load_task({TINY!r}), devices=lambda: [])\n"
    )
    with pytest.raises(UsageError, match="no device of role 'fleet'"):
        Simulated(f"{file}:task", 0, 2, tmp_path)
