"""Requests to a device's agent over its Unix socket, and the lock on the device's folder.

The ClientApp of a Flower round has no torch and no data: it forwards the server's message to the
agent, which has both, and returns the agent's reply. The socket has mode 0600 and is in the
device's state folder, so the file system controls access.

A connection carries one request and one reply. Each is a frame: two 4-byte big-endian lengths
(header, body), the header as JSON, the body as safetensors (possibly empty).
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from streams.contract.errors import MalformedRecord, Retryable, UsageError
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


# --- the agent's side -----------------------------------------------------------------------------

log = logging.getLogger(__name__)

MAX_PATH = 100  # the system's limit for a socket's path is 107 bytes

Work = Callable[[WorkRequest, bytes], tuple[WorkReply, bytes]]
Answer = Callable[[AgentRequest], AgentReply]


def socket_path(folder: Path) -> Path:
    """Return the socket's path in the device's folder; if it is too long for a socket, one in a
    private folder (0700) of the temporary directory."""
    path = folder.resolve() / "agent.sock"
    if len(os.fsencode(path)) <= MAX_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"tidewheel-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()  # another user may have put a link here
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{short} is not a private folder of this user: remove it")
    return short / "agent.sock"


class SocketServer(threading.Thread):
    """The server: one request of work at a time, other requests in parallel. A malformed request
    only closes its connection; work whose sender has gone while it waited is not done."""

    def __init__(self, path: Path, work: Work, answer: Answer) -> None:
        super().__init__(name="service", daemon=True)
        self._path = path
        self._work = work
        self._answer = answer
        self._working = threading.Lock()
        self._ending = threading.Event()
        path.unlink(missing_ok=True)  # of a killed agent
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        path.chmod(0o600)  # before anyone can connect; a umask would be that of all threads
        self._socket.listen(4)

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # shut down: stop()
                return
            threading.Thread(target=self._exchange, args=(connection,), daemon=True).start()

    def _exchange(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._serve(connection)
            except (OSError, MalformedRecord) as exc:
                log.warning("a request on the agent's socket failed: %s", exc)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(30.0)
        header, body = receive_frame(connection)
        if is_work(header):
            request = WorkRequest.decode(header)
            with self._working:
                if has_gone(connection):
                    raise ConnectionError(f"round {request.round}: nobody waits for the reply")
                reply, weights = self._work(request, body)
            send_frame(connection, reply.encode(), weights)
        else:
            send_frame(connection, self._answer(AgentRequest.decode(header)).encode(), b"")

    def stop(self) -> None:
        self._ending.set()
        with contextlib.suppress(OSError):  # of a system where it is not needed to end accept()
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join(2.0)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # only a short folder is empty now
            self._path.parent.rmdir()


def has_gone(connection: socket.socket) -> bool:
    """Return whether the peer has closed a connection on which it sends nothing more."""
    timeout_s = connection.gettimeout()
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(timeout_s)


def is_work(header: bytes) -> bool:
    """Return whether a frame's header has an operation of WorkRequest."""
    try:
        found = json.loads(header)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("op") in ("train", "evaluate")


LOOK_S = 0.1


def hold(folder: Path, patience_s: float = 0.0) -> IO[str]:
    """Lock the device's folder while the handle is open; raise UsageError if another agent still
    has the lock after `patience_s`, or the folder is not writable. Commands that read a device
    without an agent hold it too, for as long as they read: an agent has patience with them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a")
    except OSError as exc:
        raise UsageError(
            f"the device's folder {folder} cannot be written: {exc}: use another --state"
        ) from exc
    deadline = time.monotonic() + patience_s
    while not _locked(handle):
        if time.monotonic() >= deadline:
            handle.close()
            raise UsageError(
                f"another agent serves the device in {folder}: stop it, or use another --device"
            )
        time.sleep(LOOK_S)
    return handle


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
