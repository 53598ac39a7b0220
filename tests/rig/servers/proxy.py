"""A TCP proxy before a Kafka node that can swallow what the node answers to produce requests.

A connection that lost such an answer gives no other answers either, as one of which a router has
forgotten one half: the node works on what it is sent, and the client hears nothing. Or a line that
carries so many bytes a second, both ways together, in packets.
"""

import contextlib
import socket
import struct
import threading
import time

PRODUCE = 0  # Kafka's api key
PACKET = 1460


class Proxy:
    """Listens on `port` for the node at `target`, both on the loopback address."""

    def __init__(self, port: int, target: int, bytes_per_s: float | None = None) -> None:
        self._bytes_per_s, self._line = bytes_per_s, threading.Lock()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self._sockets: set[socket.socket] = set()
        self.swallowing = False
        self.swallowed = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5.0)
        for end in list(self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                node = socket.create_connection(("127.0.0.1", self._target))
                self._sockets |= {client, node}
                produced: set[int] = set()  # correlation ids of produce requests
                for work in (self._requests, self._answers):
                    pair = (client, node, produced)
                    threading.Thread(target=work, args=pair, daemon=True).start()

    def _requests(self, client: socket.socket, node: socket.socket, produced: set[int]) -> None:
        while frame := _frame(client):
            api, _version, correlation = struct.unpack_from(">hhi", frame, 4)
            if api == PRODUCE:
                produced.add(correlation)
            with contextlib.suppress(OSError):
                self._carry(node, frame)
        self._end(node)
        self._forget(client)

    def _answers(self, client: socket.socket, node: socket.socket, produced: set[int]) -> None:
        mute = False
        while frame := _frame(node):
            (correlation,) = struct.unpack_from(">i", frame, 4)
            if self.swallowing and correlation in produced:
                mute = True
            if mute:
                self.swallowed += 1
                continue
            with contextlib.suppress(OSError):
                self._carry(client, frame)
        self._end(client)
        self._forget(node)

    def _carry(self, end: socket.socket, frame: bytes) -> None:
        if self._bytes_per_s is None:
            end.sendall(frame)
            return
        for at in range(0, len(frame), PACKET):
            packet = frame[at : at + PACKET]
            with self._line:
                time.sleep(len(packet) / self._bytes_per_s)
            end.sendall(packet)

    def _end(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def _forget(self, end: socket.socket) -> None:
        self._sockets.discard(end)
        end.close()


def _frame(stream: socket.socket) -> bytes:
    """The next frame with its length, or nothing at the end."""
    with contextlib.suppress(OSError):
        if head := _read(stream, 4):
            (length,) = struct.unpack(">i", head)
            if body := _read(stream, length):
                return head + body
    return b""


def _read(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            return b""
        data += part
    return data
