"""The console's process: the watch of the topics, and the server of pages and API."""

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

from compose.dashboard.pages.site import Site, add_pages
from compose.dashboard.watch import Watch
from compose.dashboard.web.actions import Actions
from compose.dashboard.web.api import TITLE, api, make_app
from compose.dashboard.web.guard import Guard
from compose.dashboard.web.login import login
from compose.dashboard.web.sessions import Sessions, read_token
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
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_console(
    settings: ConsoleSettings, task: Task, watch: Watch, sessions: Sessions, actions: Actions | None
) -> ASGIApp:
    """Return the whole app, guarded."""
    app: FastAPI = make_app(TITLE)
    where = str(settings.token_file) if settings.public or settings.allow_actions else ""
    app.include_router(api(watch, task, settings.read_jobs))
    app.include_router(login(sessions, where))
    add_pages(app, Site(watch, task, sessions, actions, settings.read_jobs, settings.public))
    hosts = (settings.host, *settings.hosts)
    return GZipMiddleware(Guard(app, sessions, hosts, closed=settings.public), 1000)


def run(settings: ConsoleSettings, task: Task, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    needs_token = settings.allow_actions or settings.public
    sessions = Sessions(read_token(settings.token_file) if needs_token else None)
    actions = Actions(settings, task) if settings.allow_actions else None
    with closing(listen(settings)) as listening:
        watch = Watch(settings.broker, task)
        app = make_console(settings, task, watch, sessions, actions)
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
        if needs_token:
            what = "actions need" if not settings.public else "reading needs"
            say(f"{what} the token in {settings.token_file}")
        watch.start()
        try:
            server.run(sockets=[listening])
        finally:
            watch.stop()
