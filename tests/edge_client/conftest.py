"""What most tests of a device need."""

from pathlib import Path

import pytest

from streams.runtime.files import write_atomic
from tests.rig.made_up.models import exported, plain


@pytest.fixture(scope="session")
def graph(first_models: Path) -> bytes:
    """The graph of all versions of the tiny task's model: the first test that needs it exports it,
    the others find it, also those in other processes of xdist."""
    path = first_models / "tiny.onnx"
    if not path.exists():
        write_atomic(path, exported(plain(1)))
    return path.read_bytes()
