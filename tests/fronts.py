"""Requests to an ASGI application in this process, and what stands behind a worker's front."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from service.serving.asgi import App


async def beyond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"framework"})


async def nothing_beyond(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(f"{scope['path']} is not the framework's")


def run(app: App, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(send())


def post(app: App, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return run(app, ("POST", path, {"content": content, "headers": {"content-type": "application/json", **headers}}))[0]
