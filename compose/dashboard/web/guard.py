"""What may come in, and the headers of what goes out: an ASGI app before everything else.

In this order, for pages, API, static files and WebSocket alike:

1 Host has to be one of ours, or another site's name could lead here (DNS rebinding): 421
2 Origin, where there is one, has to be the page's own; a WebSocket or a POST needs one: 403
3 where reading needs the token, a session has to be open: 303 to the form, 401 for the API

HTML gets a nonce in each of its inline scripts, and every answer a content security policy.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from compose.dashboard.web.sessions import COOKIE, Sessions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/login", "/live", "/ready", "/static/")  # without a session
SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
FIXED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def session_of(cookies: str) -> str | None:
    """Return the session that a Cookie header names."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


def name_of(host: str) -> str:
    """Return a Host header without its port, in lower case."""
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdigit() else host.strip().lower()


class Guard:
    """hosts: names beside the loopback ones; closed: reading needs a session too."""

    def __init__(
        self, app: App, sessions: Sessions, hosts: Iterable[str] = (), *, closed: bool = False
    ) -> None:
        self.app = app
        self._sessions, self._closed = sessions, closed
        self._hosts = frozenset((*LOOPBACK, *(host.lower() for host in hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        # The library would write what a forwarded prefix says into its pages.
        given = [(k.lower(), v) for k, v in scope["headers"]]
        scope["headers"] = [(k, v) for k, v in given if not k.startswith(b"x-forwarded-")]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _refuse(scope, send, *refusal)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, _Answer(send).send)

    def _refusal(
        self, scope: Scope, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]] | None:
        host = headers.get("host", "")
        if name_of(host) not in self._hosts:
            return 421, f"{name_of(host)[:100]} is no name of this console: see --allow-host", {}
        origin, method = headers.get("origin"), scope.get("method", "")
        changes = scope["type"] == "websocket" or method not in SAFE
        if (changes and origin is None) or not _is_own(origin, host):
            return 403, "this request comes from another site", {}
        path = scope["path"]
        if not self._closed or path in OPEN or path.startswith("/static/"):
            return None
        if self._sessions.may_read(session_of(headers.get("cookie", ""))):
            return None
        if path.startswith("/api/") or scope["type"] == "websocket" or method not in SAFE:
            return 401, "sign in first, at /login", {}
        return 303, "sign in first", {"location": "/login"}


def _is_own(origin: str | None, host: str) -> bool:
    """Return whether an origin is that of the page itself; a proxy may speak TLS for us."""
    return origin is None or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


async def _refuse(scope: Scope, send: Send, status: int, text: str, more: dict[str, str]) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    headers = {"content-type": "text/plain; charset=utf-8", **FIXED, **more}
    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


class _Answer:
    """One answer: HTML is held back until it is whole, so that its scripts get their nonce."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""
        self._nonce = secrets.token_urlsafe(16)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = self._headers(message["headers"])
            types = [v for k, v in message["headers"] if k == b"content-type"]
            if any(kind.startswith(b"text/html") for kind in types):
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            await self._send_html(self._start)
            return
        await self._send(message)

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        ours = {**FIXED, "content-security-policy": POLICY.format(nonce=self._nonce)}
        kept = [(k, v) for k, v in given if k.decode("latin-1").lower() not in ours]
        found = [*kept, *((k.encode(), v.encode()) for k, v in ours.items())]
        if not any(k.lower() == b"cache-control" for k, _ in found):
            found.append((b"cache-control", b"no-store"))
        return found

    async def _send_html(self, start: Message) -> None:
        nonce = self._nonce.encode()
        body = self._body.replace(b"<script", b'<script nonce="' + nonce + b'"')
        rest = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        start["headers"] = [*rest, (b"content-length", str(len(body)).encode())]
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
