"""The agent's socket: private, and robust against whoever connects."""

import contextlib
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_client.ipc import MAX_PATH, SocketServer, ask, call, socket_path
from streams.contract.errors import Retryable
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest
from tests.rig.made_up.documents import work_request

REQUEST = work_request(base="1-aaaaaaaa")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    def work(request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        return WorkReply(device="d0", samples=len(body), base=request.base), body[::-1]

    def tell(question: AgentRequest) -> AgentReply:
        return AgentReply(labelled=len(question.labels), error=question.op)

    path = socket_path(tmp_path)
    service = SocketServer(path, work, tell)
    service.start()
    yield path
    service.stop()
    assert not path.exists()


def test_a_question_is_answered_while_work_is_going_on(tmp_path: Path) -> None:
    begun, finish = threading.Event(), threading.Event()

    def work(request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        begun.set()
        assert finish.wait(30)
        return WorkReply(device="d0"), b""

    service = SocketServer(
        socket_path(tmp_path), work, lambda question: AgentReply(error=question.op)
    )
    service.start()
    with ThreadPoolExecutor() as pool:
        working = pool.submit(call, socket_path(tmp_path), REQUEST, b"", 30)
        assert begun.wait(30)
        assert ask(socket_path(tmp_path), AgentRequest(op="state")).error == "state"
        finish.set()
        assert working.result(30)[0].device == "d0"
    service.stop()


def test_work_whose_sender_has_gone_while_it_waited_is_not_done(tmp_path: Path) -> None:
    begun, finish, done = threading.Event(), threading.Event(), list[int]()

    def work(request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        begun.set()
        assert finish.wait(30)
        done.append(request.round)
        return WorkReply(device="d0"), b""

    path = socket_path(tmp_path)
    service = SocketServer(path, work, lambda _: AgentReply())
    service.start()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(call, path, REQUEST, b"", 30)
        assert begun.wait(30)
        with pytest.raises(Retryable, match="timed out"):  # its ClientApp has given up
            call(path, REQUEST.replace(round=2), b"", timeout_s=0.1)
        third = pool.submit(call, path, REQUEST.replace(round=3), b"", 30)
        finish.set()
        assert [answer.result(30)[0].device for answer in (first, third)] == ["d0"] * 2
    service.stop()
    assert done == [1, 3]


def test_only_the_owner_may_open_the_socket(service: Path) -> None:
    assert stat.S_IMODE(service.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\0" * 3,
        struct.pack(">II", 1 << 31, 1),
        struct.pack(">II", 10, 0) + b"{not json}",
        struct.pack(">II", 2, 0) + b"{}",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_malformed_request_costs_its_connection_only(service: Path, junk: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(service))
        connection.sendall(junk)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it closed with bytes unread
            assert connection.recv(10) == b""
    assert call(service, REQUEST, b"x", timeout_s=5)[0].samples == 1


def test_no_agent_is_an_error_that_may_pass(tmp_path: Path) -> None:
    with pytest.raises(Retryable, match="does not answer"):
        call(tmp_path / "nobody.sock", REQUEST, b"", timeout_s=1)


def test_a_long_folder_gets_a_short_private_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    path = socket_path(folder)
    assert len(str(path)) <= MAX_PATH
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path == socket_path(folder)
    service = SocketServer(path, lambda *_: (WorkReply(device="d0"), b""), lambda _: AgentReply())
    service.start()
    service.stop()
    assert not path.parent.exists()


def test_a_link_in_the_place_of_the_short_folder_is_refused(tmp_path: Path) -> None:
    """Whoever may write to the temporary directory could lead the agent to any folder of its
    user."""
    folder = tmp_path / ("y" * 120)
    short = socket_path(folder).parent
    short.rmdir()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    short.symlink_to(private)
    try:
        with pytest.raises(PermissionError, match="is not a private folder of this user"):
            socket_path(folder)
    finally:
        short.unlink()
