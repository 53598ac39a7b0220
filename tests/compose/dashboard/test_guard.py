"""Nobody but a browser at the console's own address gets through to pages, API and WebSocket."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from jinja2 import DictLoader, Environment

from compose.dashboard.pages.pages import WithNonce
from compose.dashboard.web.guard import NONCE, Guard
from tests.compose.dashboard.client import Client

OWN = {"origin": "http://127.0.0.1:8750"}


def guarded() -> Guard:
    app = FastAPI(openapi_url=None)

    @app.get("/")
    @app.get("/api/status")
    @app.post("/change")
    async def page(request: Request) -> Response:
        return Response(request.scope[NONCE], media_type="text/html")

    return Guard(app, ["console.example"])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8750",
        "localhost",
        "[::1]:1",
        "Console.Example:443",
        "10.0.0.1:8750",
        "[fd00::1]:1",
    ],
)
def test_the_consoles_own_names_and_any_address_are_answered(host: str) -> None:
    assert Client(guarded(), host).get("/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8750", "[evil", "1"])
@pytest.mark.parametrize("path", ["/", "/api/status", "/live"])
def test_a_name_that_another_site_lets_lead_here_is_refused(host: str, path: str) -> None:
    assert Client(guarded(), "localhost").get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1", ""]
)
def test_a_request_that_another_site_makes_is_refused(origin: str) -> None:
    client = Client(guarded())
    assert client.post("/change", headers={"origin": origin}).status_code == 403
    assert client.get("/", headers={"origin": origin}).status_code == 403


def test_a_change_needs_an_origin_and_the_pages_own_is_taken() -> None:
    client = Client(guarded())
    assert client.post("/change").status_code == 403
    assert client.post("/change", headers=OWN).status_code == 200


def test_behind_a_proxy_the_pages_own_origin_is_the_proxys() -> None:
    client, own = Client(guarded()), {"origin": "https://fleet.example"}
    assert client.post("/change", headers=own).status_code == 403
    for proxy, status in (("fleet.example", 200), ("other.example", 403)):
        answer = client.post("/change", headers={**own, "x-forwarded-host": proxy})
        assert answer.status_code == status


def test_a_forwarded_prefix_is_not_written_into_pages() -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await Response("")(scope, receive, send)

    headers = {"X-Forwarded-Prefix": "</script><script>", "X-Other": "kept"}
    assert Client(Guard(app)).get("/", headers=headers).status_code == 200
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


def reached() -> tuple[Guard, list[str]]:
    seen: list[str] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.append(scope["type"])

    return Guard(app), seen


@pytest.mark.parametrize("headers", [{}, {"origin": "http://evil.example"}, {"origin": "null"}])
def test_another_site_opens_no_websocket(headers: dict[str, str]) -> None:
    guard, seen = reached()
    answer = opened(guard, host="127.0.0.1:8750", **headers)
    assert [message["type"] for message in answer] == ["websocket.close"]
    assert opened(guard, host="evil.example", origin="http://evil.example")
    assert seen == []


def test_the_pages_own_websocket_is_opened() -> None:
    guard, seen = reached()
    opened(guard, host="127.0.0.1:8750", **OWN)
    assert seen == ["websocket"]


def test_each_answer_has_a_policy_with_a_nonce_of_its_own() -> None:
    client, found = Client(guarded()), []
    for _ in range(2):
        answer = client.get("/")
        policy = answer.headers["content-security-policy"]
        assert f"script-src 'self' 'nonce-{answer.text}' 'unsafe-eval';" in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http:" not in policy
        assert "https:" not in policy
        assert answer.headers["cache-control"] == "no-store"
        found.append(answer.text)
    assert len(set(found)) == 2


def test_a_script_that_data_brings_into_a_page_has_no_nonce() -> None:
    source = "<script>ours</script>{{ data }}"
    pages = Environment(loader=WithNonce(DictLoader({"page": source})))
    request = Request({"type": "http", NONCE: "n1"})
    page = pages.get_template("page").render(request=request, data="<script>theirs</script>")
    assert page == '<script nonce="n1">ours</script><script>theirs</script>'
