"""Nobody but a browser at the console's own address gets through to pages, API and WebSocket."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from compose.dashboard.web.guard import Guard
from compose.dashboard.web.login import login
from compose.dashboard.web.sessions import COOKIE, Sessions
from tests.compose.dashboard.client import Client

TOKEN = "t" * 43
OWN = {"origin": "http://127.0.0.1:8750"}
PAGE = "<html><script>1</script><script type=module>2</script></html>"


def guarded(sessions: Sessions, closed: bool = False) -> Guard:
    app = FastAPI(openapi_url=None)
    app.include_router(login(sessions, "/a/file"))

    @app.get("/")
    @app.get("/api/status")
    @app.post("/change")
    async def page(request: Request) -> Response:
        return Response(PAGE, media_type="text/html")

    return Guard(app, sessions, ["console.example"], closed=closed)


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1:8750", "localhost", "[::1]:1", "Console.Example:443"])
def test_the_consoles_own_names_are_answered(sessions: Sessions, host: str) -> None:
    assert Client(guarded(sessions), host).get("/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8750", "10.0.0.1"])
@pytest.mark.parametrize("path", ["/", "/api/status", "/login"])
def test_a_name_that_another_site_lets_lead_here_is_refused(
    sessions: Sessions, host: str, path: str
) -> None:
    assert Client(guarded(sessions), host).get(path).status_code == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1", ""]
)
def test_a_request_that_another_site_makes_is_refused(sessions: Sessions, origin: str) -> None:
    client = Client(guarded(sessions))
    assert client.post("/change", headers={"origin": origin}).status_code == 403
    assert client.get("/", headers={"origin": origin}).status_code == 403


def test_a_change_needs_an_origin_and_the_pages_own_is_taken(sessions: Sessions) -> None:
    client = Client(guarded(sessions))
    assert client.post("/change").status_code == 403
    assert client.post("/change", headers=OWN).status_code == 200


def test_a_forwarded_prefix_is_not_written_into_pages(sessions: Sessions) -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await Response("")(scope, receive, send)

    headers = {"X-Forwarded-Prefix": "</script><script>", "X-Other": "kept"}
    assert Client(Guard(app, sessions)).get("/", headers=headers).status_code == 200
    assert b"x-other" in seen
    assert not [name for name in seen if b"forwarded" in name]


def opened(guard: Guard, **headers: str) -> list[dict[str, Any]]:
    """What a WebSocket's handshake is answered with, the app reached or not."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": "websocket", "path": "/_nicegui_ws/socket.io/", "query_string": b"",
             "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return sent


def reached(sessions: Sessions, closed: bool = False) -> tuple[Guard, list[str]]:
    seen: list[str] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.append(scope["type"])

    return Guard(app, sessions, closed=closed), seen


@pytest.mark.parametrize("headers", [{}, {"origin": "http://evil.example"}, {"origin": "null"}])
def test_another_site_opens_no_websocket(sessions: Sessions, headers: dict[str, str]) -> None:
    guard, seen = reached(sessions)
    answer = opened(guard, host="127.0.0.1:8750", **headers)
    assert [message["type"] for message in answer] == ["websocket.close"]
    assert opened(guard, host="evil.example", origin="http://evil.example")
    assert seen == []


def test_the_pages_own_websocket_is_opened_where_reading_is_allowed(sessions: Sessions) -> None:
    guard, seen = reached(sessions)
    opened(guard, host="127.0.0.1:8750", **OWN)
    assert seen == ["websocket"]
    guard, seen = reached(sessions, closed=True)
    assert opened(guard, host="127.0.0.1:8750", **OWN)[0]["type"] == "websocket.close"
    name = sessions.open(TOKEN)
    opened(guard, host="127.0.0.1:8750", cookie=f"{COOKIE}={name}", **OWN)
    assert seen == ["websocket"]


def test_every_inline_script_has_the_nonce_of_the_policy_and_each_answer_another(
    sessions: Sessions,
) -> None:
    client, found = Client(guarded(sessions)), []
    for _ in range(2):
        answer = client.get("/")
        policy = answer.headers["content-security-policy"]
        [nonce] = re.findall(r"'nonce-([\w-]+)'", policy)
        assert answer.text.count(f'<script nonce="{nonce}"') == 2
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "'unsafe-inline'" not in policy.partition("style-src")[0]
        assert "http:" not in policy
        assert "https:" not in policy
        assert answer.headers["cache-control"] == "no-store"
        found.append(nonce)
    assert len(set(found)) == 2


def test_where_other_machines_reach_it_reading_needs_the_token(sessions: Sessions) -> None:
    client = Client(guarded(sessions, closed=True))
    assert client.get("/").headers["location"] == "/login"
    assert client.get("/api/status").status_code == 401
    answer = client.post("/login", headers=OWN, data={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    session = {"cookie": cookie.partition(";")[0]}
    assert client.get("/", headers=session).status_code == 200
    client.post("/logout", headers={**OWN, **session})
    assert client.get("/", headers=session).status_code == 303


def test_the_form_refuses_wrong_tokens_and_other_sites(sessions: Sessions) -> None:
    client = Client(guarded(sessions))
    assert client.post("/login", data={"token": TOKEN}).status_code == 403
    evil = {"origin": "http://evil.example"}
    assert client.post("/login", headers=evil, data={"token": TOKEN}).status_code == 403
    for _ in range(5):
        answer = client.post("/login", headers=OWN, data={"token": "x" * 43})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    answer = client.post("/login", headers=OWN, data={"token": TOKEN})
    assert answer.status_code == 429
    assert "wait for" in answer.text
    assert client.post("/login", headers=OWN, content=b"x" * 10_000).status_code == 413
