"""What most tests of a device need."""

import pytest

from federation.bootstrap.onnx_export import export_graph
from tests.rig.made_up.models import plain, tiny


@pytest.fixture(scope="session")
def graph() -> bytes:
    """The graph of all versions of the tiny task's model."""
    return export_graph(tiny, plain(1))
