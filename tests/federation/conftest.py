"""A signing key, and a registry with a first model of the tiny task."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.initial_model import prepare
from federation.registry.registry import Registry
from streams.contract.task import Task, load_task
from streams.runtime.trust import create_key

TINY = f"{Path(__file__).parents[1] / 'rig' / 'made_up' / 'tiny_task.py'}:task"


@pytest.fixture
def task_ref() -> str:
    """A module whose tests share a broker overrides it, so that their topics are their own."""
    return TINY


@pytest.fixture
def tiny(task_ref: str) -> Task:
    return load_task(task_ref)


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return create_key(tmp_path / "keys" / "signing.pem")


@pytest.fixture
def registry(
    tmp_path: Path, key: Ed25519PrivateKey, task_ref: str, tiny: Task, first_models: Path
) -> Registry:
    """Serves a first model that knows almost nothing, so that any device has much to teach it."""
    found = Registry(tmp_path / "registry", tiny.name, tiny.version, [key.public_key()])
    young = replace(tiny, training=replace(tiny.training, central_epochs=1))
    prepare(task_ref, young, found, key, first_models)
    return found


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A short path: a Unix socket's name has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tw-") as folder:
        yield Path(folder)
