"""`/page/...`: who asks is known, and what is asked for comes from `relay.py`. No framework, no data here.

The page's own files are `static/`; they hold no data and need no token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from service.keys import allowed
from service.serving.request import Reject, check_content_type, content_length
from service.web.frames import EVENTS, Asking, etag_of
from service.web.session import LASTS_S, Asker, cookie_header
from service.web.shapes import Session, SignIn

if TYPE_CHECKING:
    from service.serving.asgi import Headers, Receive, Scope, Send
    from service.serving.worker import Worker

SIGN_IN_BYTES: Final = 4096
REVISION: Final = b"x-evergreen-revision"
"""Header in which the page says what it was told last: its next request may meet another server."""


async def answer_page(worker: Worker, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of `/page/...`. Raises `Denied` and `Reject`, for a store that does not answer, too."""
    given = {name: value for name, value in scope["headers"]}
    path, method = scope["path"], scope["method"]
    if path == "/page/session":
        await _send(send, *await _session(worker, scope, given, receive))
        return
    if method not in ("GET", "HEAD"):
        raise Reject(405, f"the page takes GET here, writes go to /manage, got {method} {path[:80]}", allow="GET, HEAD")
    asker = worker.sessions.asker(given)
    allowed(asker.token, "read")
    if path == EVENTS:
        await worker.relay.stream(receive, send, lambda: not worker.stopping and _still_good(worker, asker))
        return
    raw = scope.get("raw_path", path.encode()).partition(b"?")[0]
    texts = (text.decode("latin-1") for text in (raw, scope["query_string"], given.get(REVISION, b"")))
    body, etag = await worker.relay.part(Asking(*texts))
    if path == "/page/state":  # the one part that says who asks
        body = body[:-1] + b"," + msgspec.json.encode({"name": asker.name, "scopes": asker.token.scopes})[1:]
        etag = etag_of(body)
    known = etag.encode()
    headers = [(b"etag", known), (b"cache-control", b"private, no-cache"), (b"vary", b"cookie, authorization")]
    if given.get(b"if-none-match") == known:
        await _send(send, 304, b"", headers)
    else:
        await _send(send, 200, body if method == "GET" else b"", headers)


def _still_good(worker: Worker, asker: Asker) -> bool:
    alive = asker.expires_at is None or time.time() < asker.expires_at
    return alive and asker.token in worker.keys.tokens()


async def _session(
    worker: Worker, scope: Scope, given: Mapping[bytes, bytes], receive: Receive
) -> tuple[int, bytes, Headers]:
    method, fresh = scope["method"], (b"cache-control", b"no-store")
    secure = scope.get("scheme") == "https" or given.get(b"x-forwarded-proto", b"").strip().lower() == b"https"
    if method == "GET":
        asker = worker.sessions.asker(given)
        return 200, msgspec.json.encode(_shown(asker)), [fresh]
    if method == "DELETE":
        return 204, b"", [fresh, (b"set-cookie", cookie_header("", secure=secure, lasts_s=0))]
    if method != "POST":
        raise Reject(405, f"/page/session takes GET, POST and DELETE, not {method}", allow="GET, POST, DELETE")
    check_content_type(given.get(b"content-type", b"application/json"))
    try:
        wanted = msgspec.json.decode(await _body(given, receive), type=SignIn)
    except msgspec.DecodeError:  # not quoted: it may hold the token
        raise Reject(400, 'the body is not {"token": "..."}') from None
    client = scope.get("client")
    asker, cookie = worker.sessions.sign_in(wanted.token.strip(), client[0] if client else "this machine", time.time())
    headers = [fresh, (b"set-cookie", cookie_header(cookie, secure=secure, lasts_s=LASTS_S))]
    return 200, msgspec.json.encode(_shown(asker)), headers


def _shown(asker: Asker) -> Session:
    return Session(name=asker.name, scopes=asker.token.scopes, csrf=asker.csrf, expires_at=asker.expires_at)


async def _body(given: Mapping[bytes, bytes], receive: Receive) -> bytes:
    if content_length(given.get(b"content-length", b"0")) > SIGN_IN_BYTES:
        raise Reject(413, f"the body has more than {SIGN_IN_BYTES} bytes: it is only a token")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        body += message.get("body", b"")
        if len(body) > SIGN_IN_BYTES:
            raise Reject(413, f"the body has more than {SIGN_IN_BYTES} bytes: it is only a token")
        if not message.get("more_body"):
            return bytes(body)


async def _send(send: Send, status: int, body: bytes, extra: list[tuple[bytes, Any]]) -> None:
    headers = [(b"x-content-type-options", b"nosniff"), *extra]
    if status not in (204, 304):
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
