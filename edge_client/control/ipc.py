"""Requests to a device's agent over its Unix socket.

The ClientApp of a Flower round has no torch and no data: it forwards the server's message to the
agent, which has both, and returns the agent's reply. The socket has mode 0600 and is in the
device's state folder, so the file system controls access.

A connection carries one request and one reply. Each is a frame: two 4-byte big-endian lengths
(header, body), the header as JSON, the body as safetensors (possibly empty).
"""

import socket
import struct
from pathlib import Path

from streams.contract.errors import MalformedRecord, Retryable
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest

_LENGTHS = struct.Struct(">II")
MAX_HEADER = 1 << 16
MAX_BODY = 1 << 28


def call(
    path: Path, request: WorkRequest, body: bytes, timeout_s: float
) -> tuple[WorkReply, bytes]:
    """Send work to the agent at `path`; raise Retryable if it does not answer in time."""
    header, reply = _exchange(path, request.encode(), body, timeout_s)
    return WorkReply.decode(header), reply


def ask(path: Path, request: AgentRequest, timeout_s: float = 10.0) -> AgentReply:
    """Send a request to the agent at `path`; raise Retryable if it does not answer in time."""
    return AgentReply.decode(_exchange(path, request.encode(), b"", timeout_s)[0])


def _exchange(path: Path, header: bytes, body: bytes, timeout_s: float) -> tuple[bytes, bytes]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            send_frame(connection, header, body)
            return receive_frame(connection)
    except OSError as exc:
        raise Retryable(f"the device's agent does not answer at {path}: {exc}") from exc


def send_frame(connection: socket.socket, header: bytes, body: bytes) -> None:
    connection.sendall(_LENGTHS.pack(len(header), len(body)) + header + body)


def receive_frame(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return (header, body); raise MalformedRecord if a length is too large or the stream ends."""
    header_size, body_size = _LENGTHS.unpack(_receive(connection, _LENGTHS.size))
    if header_size > MAX_HEADER or body_size > MAX_BODY:
        raise MalformedRecord("huge-frame", f"the frame has {header_size} + {body_size} bytes")
    return _receive(connection, header_size), _receive(connection, body_size)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = connection.recv(min(missing, 1 << 20))
        if not part:
            raise MalformedRecord("short-frame", f"the peer closed, {missing} bytes are missing")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
