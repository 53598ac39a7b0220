"""What may come in, and the headers of what goes out: an ASGI app before everything else.

In this order, for pages, API, static files and WebSocket alike:

1 Host has to be an address or a name of this machine, or another site's name could lead here (DNS
  rebinding): 421. An address cannot be made to lead elsewhere.
2 Origin, where there is one, has to be the page's own; a WebSocket or a POST needs one: 403

Every answer gets a content security policy with a nonce of its own, which `pages.site` writes into
the scripts of the page's template and into no others.
"""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NONCE = "tidewheel.nonce"  # of an answer, in the scope of its request
PROXY_HOST = "x-forwarded-host"  # what the browser asked a proxy for; a page cannot set it
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


def name_of(host: str) -> str:
    """Return a Host header without its port, in lower case."""
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdigit() else host.strip().lower()


class Guard:
    """names: of this machine, beside localhost."""

    def __init__(self, app: App, names: Iterable[str] = ()) -> None:
        self.app = app
        self._names = frozenset(("localhost", *(name.lower() for name in names)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = [(k.lower(), v) for k, v in scope["headers"]]
        # The library would write what a forwarded prefix says into its pages.
        scope["headers"] = [(k, v) for k, v in given if not k.startswith(b"x-forwarded-")]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in given}
        if refusal := self._refusal(scope, headers):
            await _refuse(scope, send, *refusal)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            scope[NONCE] = secrets.token_urlsafe(16)
            await self.app(scope, receive, _with_headers(send, scope[NONCE]))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        name = name_of(headers.get("host", ""))
        if name not in self._names and not _is_address(name):
            return 421, (
                f"{name[:100]} is not a name of this console. Ask by the machine's address, or "
                "start it with --host and this name"
            )
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope.get("method", "") not in SAFE
        hosts = [headers[name].lower() for name in ("host", PROXY_HOST) if name in headers]
        own = origin is None or origin.lower() in {
            f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")
        }  # a proxy may speak TLS for us
        if (changes and origin is None) or not own:
            return 403, "this request comes from another site"
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    headers = {"content-type": "text/plain; charset=utf-8", **FIXED}
    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


def _with_headers(send: Send, nonce: str) -> Send:
    ours = {**FIXED, "content-security-policy": POLICY.format(nonce=nonce)}

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(k.lower(), v) for k, v in message["headers"] if k.decode().lower() not in ours]
            found = [*kept, *((k.encode(), v.encode()) for k, v in ours.items())]
            if not any(k == b"cache-control" for k, _ in found):
                found.append((b"cache-control", b"no-store"))
            message["headers"] = found
        await send(message)

    return sent
