"""Handing work to a device's resident agent, and asking it, over its Unix socket.

The ClientApp of a Flower round holds no torch and no data: it sends what the server sent to the
agent that already has both, and returns the agent's reply. The socket has mode 0600 and lies in
the device's state folder; who may open it is decided by the file system.

One request and one reply a connection. Both are a frame: two 4-byte big-endian lengths (header,
body), the header as JSON, the body as safetensors (possibly empty).
"""

import socket
import struct
from pathlib import Path

from streams.contract.device import AgentReply, AgentRequest
from streams.contract.errors import MalformedRecord, Retryable
from streams.contract.work import WorkReply, WorkRequest

_LENGTHS = struct.Struct(">II")
MAX_HEADER = 1 << 16
MAX_BODY = 1 << 28


def call(
    path: Path, request: WorkRequest, body: bytes, timeout_s: float
) -> tuple[WorkReply, bytes]:
    """Send a request to the agent that listens at `path`; Retryable when none answers in time."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            send_frame(connection, request.encode(), body)
            header, reply = receive_frame(connection)
    except OSError as exc:
        raise Retryable(f"the device's agent does not answer at {path}: {exc}") from exc
    return WorkReply.decode(header), reply


def ask(path: Path, question: AgentRequest, timeout_s: float = 10.0) -> AgentReply:
    """Ask the agent that listens at `path`; Retryable when none answers in time."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            send_frame(connection, question.encode(), b"")
            header, _ = receive_frame(connection)
    except OSError as exc:
        raise Retryable(f"the device's agent does not answer at {path}: {exc}") from exc
    return AgentReply.decode(header)


def send_frame(connection: socket.socket, header: bytes, body: bytes) -> None:
    connection.sendall(_LENGTHS.pack(len(header), len(body)) + header + body)


def receive_frame(connection: socket.socket) -> tuple[bytes, bytes]:
    """(header, body); MalformedRecord when the lengths are out of bounds or the stream ends."""
    header_size, body_size = _LENGTHS.unpack(_receive(connection, _LENGTHS.size))
    if header_size > MAX_HEADER or body_size > MAX_BODY:
        raise MalformedRecord("huge-frame", f"a frame of {header_size} + {body_size} bytes")
    return _receive(connection, header_size), _receive(connection, body_size)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = connection.recv(min(missing, 1 << 20))
        if not part:
            raise MalformedRecord("short-frame", f"the peer closed with {missing} bytes to come")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
