"""The form that takes the token: HTML without a script."""

import html
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response

from compose.dashboard.web.guard import session_of
from compose.dashboard.web.sessions import COOKIE, READS_S, Sessions

LARGEST = 4096  # bytes of a form
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in - Tidewheel</title><link rel="stylesheet" href="/static/console.css"></head>
<body class="login"><main><h1>Tidewheel console</h1>
<form method="post" action="/login"><p>{text}</p>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button type="submit">Sign in</button></form></main></body></html>"""
ASK = "The token is in the file that the console named when it started."


def login(sessions: Sessions, where: str) -> APIRouter:
    """Return the routes of the form. where: the token's file, for who cannot find it."""
    router = APIRouter(include_in_schema=False)

    def form(text: str, status: int = 200) -> Response:
        return Response(PAGE.format(text=html.escape(text)), status, media_type="text/html")

    @router.get("/login")
    def show() -> Response:
        return form(f"{ASK} It is {where}." if where else "This console takes no actions.")

    @router.post("/login")
    async def take(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return form("That is no token.", 413)
        [given] = parse_qs(body.decode(errors="replace")).get("token", [""])[:1]
        if (waits_s := sessions.waits_s) > 0:
            return form(f"Too many wrong tokens: wait for {waits_s:.0f} s.", 429)
        name = sessions.open(given)
        if name is None:
            return form("That is not the token.", 403)
        answer = Response(status_code=303, headers={"location": "/"})
        secure = request.headers.get("origin", "").startswith("https:")
        answer.set_cookie(
            COOKIE, name, int(READS_S), httponly=True, samesite="strict", secure=secure
        )
        return answer

    @router.post("/logout")
    def leave(request: Request) -> Response:
        sessions.close(session_of(request.headers.get("cookie", "")))
        answer = Response(status_code=303, headers={"location": "/"})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router
