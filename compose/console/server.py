"""The console's process: settings, pages and JSON over HTTP, and the watch of the topics.

The server has GET alone. Two rules for what comes in and goes out:

1 Host has to be an address or a name of this machine, or another site's name could lead here (DNS
  rebinding): 421. An address cannot be made to lead elsewhere.
2 A content security policy allows the console's own script file alone.
"""

import ipaddress
import logging
import os
import shlex
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from compose.console.site import STATIC, Site, add_api, add_pages
from compose.console.watch import Watch
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from streams.runtime.process import give_back

log = logging.getLogger(__name__)

GRACE_S = 2  # for answers that are under way when it ends
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class ConsoleSettings:
    """port 0: a free one. reference, options, kafka: the task and the options of the commands that
    pages show."""

    broker: BrokerSettings
    state: Path
    reference: str
    options: Sequence[str] = ()
    kafka: str | None = None
    host: str = "127.0.0.1"
    port: int = 8750

    def command(self, name: str, *words: str, topics: bool = False) -> str:
        """Return a command of `tidewheel` for the same task, to be copied; topics: it needs the
        broker."""
        broker = ["--kafka", self.kafka] if topics and self.kafka else []
        given = [self.reference, *words, *self.options, *broker]
        return f"tidewheel {name} {shlex.join(given)}"

    @property
    def public(self) -> bool:
        """Whether other machines may reach it."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def names(self) -> set[str]:
        """The names by which browsers may ask for it, beside addresses."""
        own = {socket.gethostname(), socket.getfqdn()} if self.public else set()
        return {name.lower() for name in ("localhost", self.host, *own)}


def make_console(settings: ConsoleSettings, task: Task, watch: Watch) -> FastAPI:
    """Return the whole app."""
    title, schemas = "Tidewheel console", "/api/openapi.json"
    app = FastAPI(title=title, openapi_url=schemas, docs_url=None, redoc_url=None)
    names = settings.names

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        name = request.headers.get("host", "").strip().lower()
        if not is_own(name, names):
            text = f"{name[:100]} is not a name of this console. Ask by the machine's address, or "
            return Response(f"{text}start it with --host and this name\n", 421, HEADERS)
        response = await answer(request)
        response.headers.update({**HEADERS, "content-security-policy": POLICY})
        return response

    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    site = Site(watch, task, settings.state, settings.command)
    add_api(app, site)
    add_pages(app, site)
    return app


def is_own(host: str, names: set[str]) -> bool:
    """Return whether a header Host is an address, or one of the names, in lower case."""
    name, colon, port = host.rpartition(":")
    name = name if colon and port.isdigit() else host
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name in names
    return True


def listen(settings: ConsoleSettings) -> socket.socket:
    """Return a listening socket; raise UsageError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as exc:
        why = os.strerror(exc.errno or 0)
        raise UsageError(
            f"the console cannot listen on {settings.host}:{settings.port}: {why}: "
            "choose another --port, 0 for a free one"
        ) from exc


def address_of(listening: socket.socket) -> str:
    """Return an address that a browser can open."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's."""
        yield


def run(settings: ConsoleSettings, task: Task, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    with closing(listen(settings)) as listening:
        give_back()
        watch = Watch(settings.broker, task)
        config = uvicorn.Config(
            make_console(settings, task, watch),
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = _Server(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        say(f"console of {task.name} at {address_of(listening)}; Ctrl-C stops it")
        if settings.public:
            say("Everyone who can reach this port can read everything that the console shows.")
        say(f"connecting to Kafka at {settings.broker.bootstrap}")
        watch.start()
        try:
            server.run(sockets=[listening])
        finally:
            watch.stop()
