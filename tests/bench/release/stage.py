"""What every measurement of releases needs: a registry that serves the first model, a second one
that was fine-tuned of it, and a real Kafka."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.initial_model import prepare
from federation.bootstrap.self_test import renew_probe
from federation.registry.registry import Registry
from streams.contract.artifact import PROBE, WEIGHTS, Artifact, pack
from streams.contract.decisions import Ref
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.kafka.producer import Producer
from streams.runtime.disk import cache_folder
from streams.runtime.key_files import create_key
from tests.bench.kafka import Kafka
from tests.bench.release.answers import People, Tensors, fine_tuned, read


@dataclass(frozen=True)
class Stage:
    """folder: for everything; quick: less of everything."""

    folder: Path
    reference: str
    task: Task
    kafka: Kafka
    quick: bool

    @cached_property
    def people(self) -> People:
        return read(self.reference, self.task, self.folder / "people", cache_folder())

    @cached_property
    def second(self) -> Tensors:
        return self.version(1)

    def version(self, number: int) -> Tensors:
        """The first model, fine-tuned on the people of the lab, each number in another order."""
        return fine_tuned(self.people, [number])[0]

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        return create_key(self.state / "keys" / "signing.pem")

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @cached_property
    def registry(self) -> Registry:
        """It serves the first model."""
        where, keys = self.state / "registry", [self.key.public_key()]
        registry = Registry(where, self.task.name, self.task.version, keys)
        prepare(self.reference, self.task, registry, self.key, cache_folder())
        return registry

    def made(self, base: Artifact, weights: Tensors) -> Artifact:
        """A kept version as a run of the task makes it."""
        changed = {"number": self.registry.next_number(), "base": base.model, "files": []}
        manifest = base.manifest.model_copy(
            update={**changed, "created_us": time.time_ns() // 1000}
        )
        kind, before = self.task.training.payload, _whole(base.files[WEIGHTS])
        halved = payload.to_safetensors(payload.round_candidate(weights, before, kind), kind)
        files = {**base.files, WEIGHTS: halved, PROBE: renew_probe(base, _whole(halved))}
        return self.registry.add(pack(manifest, files, self.key))

    def offer_to_all(self, model: Artifact) -> None:
        """Decide that every device is offered it, as the last stage of a rollout does."""
        ref = Ref.of(model)
        standing = self.registry.desired().model_copy(update={"offered": ref, "share": 1.0})
        last = self.registry.last()
        self.registry.decide(self.key, "stage", standing, last, model=ref.model, reason="bench")

    def serve(self, model: Artifact) -> None:
        """The rollout is over."""
        self.registry.serve(model.model, self.key, "bench")

    @contextmanager
    def producer(self) -> Iterator[Producer]:
        producer = Producer(self.kafka.settings)
        try:
            yield producer
        finally:
            producer.close()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _whole(data: bytes) -> Tensors:
    return payload.to_float32(safetensors.numpy.load(data))
