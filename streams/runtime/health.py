"""Metrics, readiness and liveness over HTTP on loopback, for a scraper or a supervisor on the same
machine; whoever wants them elsewhere puts a proxy of their own in front:

    /metrics   the numbers, in Prometheus' text format
    /ready     200 or 503
    /live      200 or 503
"""

import logging
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Protocol

from streams.contract.errors import UsageError

HOST = "127.0.0.1"
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_S = 10.0  # for a client to say what it wants
CLOSE_S = 0.1  # at most, to end

log = logging.getLogger(__name__)


class HealthSource(Protocol):
    """What is told; asked by the server's threads."""

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    def text(self) -> bytes:
        """The numbers in Prometheus' text format."""
        ...


class HealthServer(ThreadingTCPServer):
    """Answers on loopback until `close`; `port` is the one that it has.

    No http.server.HTTPServer, which asks the machine's resolver for its own name at start.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, told: HealthSource, port: int) -> None:
        self.told = told
        super().__init__((HOST, port), _Handler)
        self.port = int(self.server_address[1])
        threading.Thread(
            target=self.serve_forever, args=(CLOSE_S,), name="metrics", daemon=True
        ).start()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("a request from %s failed", client_address, exc_info=True)  # it went away

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = REQUEST_S

    def do_GET(self) -> None:
        told = self.server.told
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, told.text(), TEXT_FORMAT)
            case "/ready":
                self._say(told.ready)
            case "/live":
                self._say(told.alive)
            case _:
                self._answer(404, b"/metrics, /ready, /live\n")

    def _say(self, good: bool) -> None:
        self._answer(200 if good else 503, b"yes\n" if good else b"no\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        return


def serve(told: HealthSource, port: int) -> HealthServer:
    """Answer from now on; 0 picks a free port. UsageError where the port cannot be had."""
    try:
        return HealthServer(told, port)
    except (OSError, OverflowError) as exc:
        why = (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)
        raise UsageError(
            f"metrics cannot be served on {HOST}:{port} ({why}): name another port, or 0 for any"
        ) from exc
