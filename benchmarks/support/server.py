"""The server's side of a fleet without its processes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.numpy

from federation.bootstrap.dataset import segments_of_device, stack
from federation.bootstrap.initial_model import prepare
from federation.evaluation.quantization import renew_probe
from federation.registry.registry import Registry
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact, pack
from streams.contract.decisions import Ref
from streams.contract.task import load_task
from streams.contract.weights import payload
from streams.learning.learning import build_model, fit, load_state, segment_loss
from streams.runtime.files import cache_folder
from streams.runtime.trust import create_key

TASK = "streams.tasks.har:task"


@dataclass
class Server:
    """A registry that serves the first model, and versions that are fine-tuned of it."""

    state: Path
    reference: str = TASK
    changes: Mapping[str, object] = field(default_factory=dict)  # of the task

    def __post_init__(self) -> None:
        self.task = replace(load_task(self.reference), **self.changes)  # type: ignore[arg-type]
        self.key = create_key(self.state / "keys" / "signing.pem")
        keys = [self.key.public_key()]
        self.registry = Registry(self.state / "registry", self.task.name, self.task.version, keys)
        prepare(self.reference, self.task, self.registry, self.key, cache_folder())

    @property
    def serving(self) -> Artifact:
        found = self.registry.serving()
        assert found is not None
        return found

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        return payload.to_float32(safetensors.numpy.load(self.serving.files[WEIGHTS]))

    def fine_tuned(self, seed: int) -> dict[str, np.ndarray]:
        """Return the first model, taught by the people of lab and pilot."""
        task, names = self.task, self.task.device_names("lab", "pilot")
        known = stack(task, [segments_of_device(task, name) for name in names])
        model = load_state(build_model(task), self.first)
        fit(
            model, len(known.labels), segment_loss(task, model, known.segments, known.labels),
            epochs=2, batch_size=64, learning_rate=1e-3, seed=seed, optimizer="adamw",
        )  # fmt: skip
        return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}

    def offer(self, number: int) -> Artifact:
        """Make a version as a run of the task makes it, and offer it to every device."""
        base, kind = self.serving, self.task.training.payload
        weights = self.fine_tuned(number)
        before = payload.to_float32(safetensors.numpy.load(base.files[WEIGHTS]))
        data = payload.to_safetensors(payload.round_candidate(weights, before, kind), kind)
        now = payload.to_float32(safetensors.numpy.load(data))
        probe = renew_probe(base.files, base.files[GRAPH], now)
        about = {"number": self.registry.next_number(), "base": base.model, "files": []}
        manifest = base.manifest.replace(**about, created_us=time.time_ns() // 1000)
        files = {**base.files, WEIGHTS: data, PROBE: probe}
        model = self.registry.add(pack(manifest, files, self.key))
        ref, last = Ref.of(model), self.registry.last()
        desired = self.registry.desired().replace(offered=ref, share=1.0)
        self.registry.decide(self.key, "stage", desired, last, model=ref.model, reason="bench")
        return model
