"""The console's process: the watch of the topics, and the server of pages and API."""

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from compose.dashboard.pages.pages import add_pages
from compose.dashboard.pages.site import Site
from compose.dashboard.processes import ProcessUsage
from compose.dashboard.watch import Watch
from compose.dashboard.web.api import TITLE, api, make_app
from compose.dashboard.web.guard import Guard
from compose.dashboard.web.settings import ConsoleSettings
from streams.contract.errors import UsageError
from streams.contract.task import Task

log = logging.getLogger(__name__)

GRACE_S = 2  # for answers that are under way when it ends


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's."""
        yield


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
    """Return the address that a browser can open."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = _own_address(listening.family)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _own_address(family: int) -> str:
    """Return the address from which this machine reaches others; nothing is sent."""
    elsewhere, loopback = (
        ("2001:db8::1", "::1") if family == socket.AF_INET6 else ("192.0.2.1", "127.0.0.1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect((elsewhere, 9))
        except OSError:
            return loopback
        return str(asked.getsockname()[0])


def names_of(settings: ConsoleSettings) -> set[str]:
    """Return the names by which browsers may ask for it."""
    own = {socket.gethostname(), socket.getfqdn()} if settings.public else set()
    return {settings.host, *own}


def make_console(settings: ConsoleSettings, task: Task, watch: Watch) -> ASGIApp:
    """Return the whole app, guarded."""
    app: FastAPI = make_app(TITLE)
    usage = ProcessUsage(settings.state)
    app.include_router(api(watch, task, settings.read_jobs, usage))
    add_pages(app, Site(watch, task, settings.read_jobs, settings.command, usage))
    return GZipMiddleware(Guard(app, names_of(settings)), 1000)


def run(settings: ConsoleSettings, task: Task, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    with closing(listen(settings)) as listening:
        watch = Watch(settings.broker, task)
        app = make_console(settings, task, watch)
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
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
