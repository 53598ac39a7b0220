"""The agent's Unix socket, for work from the ClientApp and requests from the command line."""

import contextlib
import hashlib
import json
import logging
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from edge_client.control.ipc import receive_frame, send_frame
from streams.contract.errors import MalformedRecord
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest

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
    found = short.lstat()  # whoever may write here can put a link to another folder of ours
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
