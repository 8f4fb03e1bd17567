"""The front of a worker: it stands before BentoML, answers what is ours, and hands the rest on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from service.serving.answer import JSON, Lane
from service.serving.asgi import App, Message, Receive, Scope, Send
from service.serving.ids import new_request_id
from service.serving.request import (
    ACCEPT,
    KINDS,
    TRACEPARENT,
    Reject,
    answer_kind,
    body_encoding,
    body_kind,
    echoed,
)
from service.serving.request import JSON as IN_JSON
from service.serving.routes import answer, template
from service.serving.tryout import predict_json
from service.serving.wire import LaneProtocol
from service.serving.worker import Worker
from service.settings import TRACED_VARIABLE

HANDED_ON: Final = "evergreen.handed_on"
"""In the scope of a request that is BentoML's to answer: it meets the front a second time, inside."""


class Front:
    """ASGI application that answers the lane's own routes and hands every other request on.

    Args:
        app: what answers the rest (BentoML's own application).
        worker: gives the worker of this process; it exists once the service has started.
    """

    def __init__(self, app: App, worker: Callable[[], Worker]) -> None:
        self.app = app
        self._worker = worker
        self.stack: App | None = None
        """The whole of BentoML's application, when requests come here before it: its tracing and timeout layers cost
        some 60 µs a request and are of no use to what never waits. With tracing on they stay outside."""
        self._lane: Lane | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and HANDED_ON not in scope:
            await self._answer(self.lane, scope, receive, send)
            return
        if scope["type"] == "lifespan" and not os.environ.get(TRACED_VARIABLE):
            LaneProtocol.front = self
        await self.app(scope, receive, send)

    @property
    def lane(self) -> Lane:
        """The lane of this process; only to be asked for once the service has started."""
        if self._lane is None:
            self._lane = Lane(self._worker())
        return self._lane

    async def _answer(self, lane: Lane, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in ("/predict", "/feedback"):
            await self._elsewhere(lane, path, scope, receive, send)
            return
        request_id = traceparent = accept = encoding = b""
        kind, kinds = IN_JSON, KINDS if path == "/predict" else (IN_JSON,)
        try:
            if scope["method"] != "POST":
                raise Reject(405, f"{path} takes POST, not {scope['method']}")
            for name, value in scope["headers"]:
                if name == b"content-type":
                    kind = body_kind(value, kinds)
                elif name == b"content-encoding":
                    encoding = body_encoding(value)
                elif name == ACCEPT:
                    accept = value
                elif name == b"x-request-id":
                    request_id = echoed(value)
                elif name == TRACEPARENT:
                    traceparent = value
            source = lane.source("predict" if path == "/predict" else "feedback", scope)
            wanted, told = answer_kind(accept, kind) if accept else kind, [JSON]
            async with lane.whole_body(scope, receive, encoding) as content:
                if path == "/feedback":
                    status, body = await lane.take_labels(content, source)
                elif kind == wanted == IN_JSON:
                    status, body = 200, await predict_json(lane, content, source, traceparent)
                else:
                    from service.serving.tables import predict_table

                    status = 200
                    told, body = await predict_table(lane, kind, wanted, content, source, traceparent)
            lane.count(path, status)
            named = (b"x-request-id", request_id or new_request_id())
            headers = [*told, (b"content-length", b"%d" % len(body)), named]
            if lane.worker.stopping:
                headers.append((b"connection", b"close"))
        except ConnectionResetError:
            return  # the client left before its request was whole; nothing was done
        except Exception as error:
            status, headers, body = lane.refusal(path, error, request_id, traceparent)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _elsewhere(self, lane: Lane, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        status, route = 0, template(path)
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = echoed(given) or new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id.decode(), route=route)

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", request_id)]}
            await send(message)

        try:
            if path == "/v2" or path.startswith("/v2/"):
                from service.serving.v2 import answer_v2

                await answer_v2(lane, scope, receive, counting_send)
            elif not await answer(lane.worker, scope, receive, counting_send):
                await (self.stack or self.app)({**scope, HANDED_ON: True}, receive, counting_send)
        except ConnectionResetError:
            return  # the client left before its request was whole; nothing was done
        except Exception as error:
            if status:
                lane.count(route, 500)
                raise
            status, headers, body = lane.refusal(route, error, request_id)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            if status:  # none: the client left, and nothing was answered
                lane.count(route, status)
