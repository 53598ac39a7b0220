"""Metrics, readiness and liveness over HTTP, on loopback unless another address is asked for.

They are not encrypted and ask for no password: elsewhere than on loopback they belong on a network
that the scraper alone reaches.

    /metrics   the metrics in Prometheus' text format
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
REQUEST_S = 10.0  # timeout of a request
CLOSE_S = 0.1  # at most, to stop serving

log = logging.getLogger(__name__)


class HealthSource(Protocol):
    """What the server reports; called by its threads."""

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        ...


class HealthServer(ThreadingTCPServer):
    """A server that answers until `close`; `port` is its actual port.

    Not an http.server.HTTPServer, which asks the resolver for the machine's name at start.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, source: HealthSource, port: int, host: str = HOST) -> None:
        self.source = source
        super().__init__((host, port), _Handler)
        self.port = int(self.server_address[1])
        threading.Thread(
            target=self.serve_forever, args=(CLOSE_S,), name="metrics", daemon=True
        ).start()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("a request from %s failed", client_address, exc_info=True)  # it disconnected

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = REQUEST_S

    def do_GET(self) -> None:
        source = self.server.source
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, source.text(), TEXT_FORMAT)
            case "/ready":
                self._say(source.ready)
            case "/live":
                self._say(source.alive)
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


def serve(source: HealthSource, port: int, host: str = HOST) -> HealthServer:
    """Start a HealthServer; port 0 picks a free one. Raise UsageError if the port is taken."""
    try:
        return HealthServer(source, port, host)
    except (OSError, OverflowError) as exc:
        why = (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)
        raise UsageError(
            f"metrics cannot be served on {host}:{port} ({why}): name another port, or 0 for any"
        ) from exc
