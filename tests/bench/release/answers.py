"""What models answer to real people's windows, beside the teacher: computed once, so that a rollout
can be simulated many times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.dataset import Segments, segments_of_device, stack
from federation.bootstrap.initial_model import prepare
from federation.evaluation.onnx_runner import run_graph
from federation.registry.registry import Registry
from streams.contract.artifact import GRAPH, WEIGHTS
from streams.contract.task import Task
from streams.learning.learning import build_teacher, fit, load_weights, segment_loss

Tensors = dict[str, np.ndarray]
FINE_TUNING = ("lab", "pilot")  # whose labels a fine-tuned model has seen
EPOCHS, BATCH, RATE = 2, 64, 1e-3
CLOSE = 0.004  # of an agreement that was asked for


@dataclass(frozen=True)
class Window:
    """The teacher's classes, (n,), and for each model whether it agrees, (n,) bool."""

    classes: np.ndarray
    agrees: Mapping[str, np.ndarray]


@dataclass
class People:
    """The fleet's windows in order, and what is needed to have another model answer to them."""

    task: Task
    graph: bytes
    first: Tensors
    names: list[str]
    segments: list[np.ndarray]  # per person (n, channels, samples)
    edges: list[list[int]]  # per person: where windows begin, and the end
    teacher: list[np.ndarray]  # per person (n, outputs)

    def agreement(self, weights: Tensors) -> list[np.ndarray]:
        """Per person (n,) bool."""
        return [
            self.task.agrees(run_graph(self.graph, segments, weights), teacher)
            for segments, teacher in zip(self.segments, self.teacher, strict=True)
        ]

    def windows(self, models: Mapping[str, list[np.ndarray]]) -> dict[str, list[Window]]:
        """By person, of models' agreements."""
        found = {}
        for i, name in enumerate(self.names):
            classes, edges = self.teacher[i].argmax(axis=1), self.edges[i]
            found[name] = [
                Window(classes[a:b], {m: agrees[i][a:b] for m, agrees in models.items()})
                for a, b in pairwise(edges)
            ]
        return found


def read(task_ref: str, task: Task, folder: Path, cache: Path) -> People:
    key = Ed25519PrivateKey.generate()
    registry = Registry(folder / "registry", task.name, task.version, [key.public_key()])
    prepare(task_ref, task, registry, key, cache)
    serving, teacher = registry.serving(), registry.teacher()
    assert serving is not None
    assert teacher is not None
    judge = load_weights(build_teacher(task), teacher.files[WEIGHTS]).eval()
    names = task.device_names("fleet")
    people = [segments_of_device(task, name) for name in names]
    edges = [_edges(task, person) for person in people]
    return People(
        task=task,
        graph=serving.files[GRAPH],
        first=safetensors.numpy.load(serving.files[WEIGHTS]),
        names=names,
        segments=[person.segments for person in people],
        edges=edges,
        teacher=[_scored(judge, p.segments, e) for p, e in zip(people, edges, strict=True)],
    )


def _edges(task: Task, person: Segments) -> list[int]:
    starts = np.array([task.window_start(int(time)) for time in person.times], np.int64)
    return [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]


@torch.no_grad()
def _scored(teacher: torch.nn.Module, segments: np.ndarray, edges: list[int]) -> np.ndarray:
    parts = []
    for a, b in pairwise(edges):
        mask = torch.ones(1, b - a, dtype=torch.bool)
        parts.append(teacher(torch.from_numpy(segments[a:b][None]), mask).numpy()[0])
    return np.concatenate(parts)


def fine_tuned(people: People, seeds: Sequence[int]) -> list[Tensors]:
    """The first model, taught by the people of the lab, once for each seed."""
    task = people.task
    known = stack(task, [segments_of_device(task, n) for n in task.device_names(*FINE_TUNING)])
    found = []
    for seed in seeds:
        model = load_weights(task.build_model(), safetensors.numpy.save(people.first))
        loss = segment_loss(task, model, known.segments, known.labels)
        fit(
            model, len(known.labels), loss, epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE,
            seed=seed, optimizer="adamw",
        )  # fmt: skip
        found.append({k: v.numpy().copy() for k, v in model.eval().state_dict().items()})
    return found


def worse_by(
    people: People, weights: Tensors, loss: float, seed: int
) -> tuple[Tensors, list[np.ndarray]]:
    """`weights` and noise, as much of it as costs the fleet `loss` of its agreement."""
    dice = np.random.default_rng(seed)
    noise = {
        name: dice.normal(0, max(float(value.std()), 1e-6), value.shape).astype(np.float32)
        for name, value in weights.items()
        if name.endswith("weight")
    }
    aim = share(people.agreement(weights)) - loss

    def mixed(amount: float) -> Tensors:
        return {k: v + amount * noise[k] if k in noise else v for k, v in weights.items()}

    low, high = 0.0, 2.0
    for _ in range(20):
        amount = (low + high) / 2
        found = people.agreement(mixed(amount))
        gap = share(found) - aim
        if abs(gap) < CLOSE:
            break
        low, high = (amount, high) if gap > 0 else (low, amount)
    return mixed(amount), found


def share(agreement: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(agreement).mean())
