"""Requests to an ASGI app, without a socket."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass
class Client:
    """host: what the header Host says."""

    app: Any
    host: str = "127.0.0.1:8750"

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            base = f"http://{self.host}"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)
