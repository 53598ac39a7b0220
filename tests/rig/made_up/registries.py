"""Registries with models of a few bytes, for tests of what is decided, and who decides."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.controller.flwr_cli import Submission
from federation.controller.settings import ControllerSettings
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS, Manifest, pack
from streams.contract.decisions import Ref, Release
from streams.kafka.settings import BrokerSettings

OLD = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NEW = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))


def registry_in(folder: Path, task: str = "tiny") -> Registry:
    return Registry(folder, task, 1, [OLD.public_key()])


def model(registry: Registry, number: int, key: Ed25519PrivateKey = OLD, **manifest: Any) -> Ref:
    """Keep a version; its weights are a few numbers."""
    about = Manifest.of_fields(
        {"task": registry.task, "task_version": 1, "number": number, "created_us": number,
         "key": "", "files": [], **manifest}
    )  # fmt: skip
    weights = {"w": np.arange(300, dtype=np.float32) * number, "b": np.zeros(2, np.float32)}
    data = pack(about, {WEIGHTS: safetensors.numpy.save(weights), "graph.onnx": b"g"}, key)
    kept = registry.add_teacher(data) if about.kind == "teacher" else registry.add(data)
    return Ref.of(kept)


def controller_settings(
    reference: str,
    broker: BrokerSettings,
    state: Path,
    submission: Submission,
    key_path: Path | None = None,
    **more: Any,
) -> ControllerSettings:
    """A controller's, whose registry and keys are in the state folder."""
    key_path = key_path or state / "keys" / "signing.pem"
    keys = (key_path.with_suffix(".pub"),)
    usual: dict[str, Any] = {"registry": state / "registry", "public_keys": keys}
    return ControllerSettings(
        task_ref=reference, broker=broker, state=state, signing_key=key_path,
        submission=submission, **{**usual, **more},
    )  # fmt: skip


def serve(registry: Registry, ref: Ref, key: Ed25519PrivateKey = OLD) -> Release:
    return registry.serve(ref.model, key, "a test")


def offer(registry: Registry, ref: Ref, key: Ed25519PrivateKey = OLD) -> Release:
    """To a twentieth of the fleet."""
    fields = {"offered": ref, "share": 0.05, "stage": 1, "candidate": None}
    after = registry.desired().replace(**fields)
    return registry.decide(key, "stage", after, registry.last(), model=ref.model, reason="offered")


def wait(registry: Registry, ref: Ref, key: Ed25519PrivateKey = OLD) -> Release:
    """As a candidate."""
    after = registry.desired().replace(candidate=ref)
    return registry.decide(key, "candidate", after, registry.last(), model=ref.model)
