"""Before `/manage`: who asks is known, and how much may come, before the first byte of a body is read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException

from service.serving.connection import PUSH
from service.serving.request import Reject, content_length

if TYPE_CHECKING:
    from service.serving.asgi import App, Message, Receive, Send
    from service.serving.asgi import Scope as Asgi
    from service.serving.worker import Worker
    from service.settings import Scope

logger = logging.getLogger("evergreen.gate")

BODY_BYTES: Final = 2**20
"""Of a request in JSON: 10,000 ids to erase are some 400 kB."""


async def guarded(app: App, worker: Worker, scope: Asgi, receive: Receive, send: Send) -> None:
    """Let `app` answer a request of `/manage` whose token or session may ask for it; its name is `request.state.who`.

    Raises `Denied`, or `Reject` for a body that is too long by its own account. What `app` raises, once it has
    answered it as a 500, stands in the log with the request's id.
    """
    given = {name: value for name, value in scope["headers"]}
    path, method = scope["path"], scope["method"]
    pushes = path == PUSH.decode() and method == "POST"
    needed: Scope = "read" if method in ("GET", "HEAD") else "push" if pushes else "operate"
    who = worker.sessions.require(needed, given, writes=needed != "read").name
    most = worker.settings.security.max_push_bytes if pushes else BODY_BYTES
    if content_length(given.get(b"content-length", b"0")) > most:
        raise Reject(413, _too_large(most))
    request_id, route = scope["state"]["request_id"], scope["state"]["route"]
    scope["state"]["who"] = who
    received, started, gone = 0, False, False

    async def bounded() -> Message:
        nonlocal received, gone
        message = await receive()
        gone = gone or (message["type"] == "http.disconnect" and not started)
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(413, _too_large(most), {"connection": "close"})
        return message

    async def identified(message: Message) -> None:
        nonlocal started
        if gone:
            return  # nobody is there; and what the framework says of that is no error of ours
        if message["type"] == "http.response.start":
            started = True
        await send(message)

    try:
        await app(scope, bounded, identified)
    except Exception:  # the application has answered it
        if gone:
            raise ConnectionResetError from None
        told = {"request": request_id, "route": route, "status": 500}
        logger.exception("unexpected error on %s %s, request %s", method, route, request_id, extra=told)


def _too_large(most: int) -> str:
    return f"the body has more than {most} bytes, which is the most for this request"
