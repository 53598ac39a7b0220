"""What tests of clients of Kafka share."""

import contextlib
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def silent() -> Iterator[str]:
    """An address whose host drops what comes, as one that is down: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"
