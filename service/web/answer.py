"""`/page/...`: who asks is known, what is asked for is found, and what goes wrong is said. No framework, no data here.

The page's own files are `static/`; they hold no data and need no token.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec
import sqlalchemy as sa

from service.keys import allowed
from service.serving.management.deployment import TRY_AGAIN_S, store_down
from service.serving.request import Reject, check_content_type, content_length
from service.web.decisions import decisions
from service.web.distribution import distribution
from service.web.drift import drift
from service.web.events import events_of
from service.web.histogram import histogram
from service.web.page import Page, etag_of, page_of
from service.web.quality import quality
from service.web.segments import segments
from service.web.session import LASTS_S, Asker, cookie_header
from service.web.shapes import Drift, Session, SignIn, State
from service.web.span import Asked, whole_number
from service.web.state import for_asker, state
from service.web.story import story
from service.web.traffic import traffic
from training.comparison import compare
from training.manifest import FormatError
from training.registry import UnknownVersion
from training.runs import UnknownRun

if TYPE_CHECKING:
    from service.serving.asgi import Headers, Receive, Scope, Send
    from service.serving.worker import Worker

logger = logging.getLogger("evergreen.page")

LARGEST_ID: Final = 2**31 - 1
SIGN_IN_BYTES: Final = 4096
REVISION: Final = b"x-evergreen-revision"
"""Header in which the page says what it was told last: its next request may meet another worker."""
FOREVER_S: Final = 3600.0
"""Of an answer that only another store changes; it holds a clock's moment all the same."""

Query = Mapping[str, str]
Work = Callable[[], msgspec.Struct]


def _route(page: Page, path: str, query: Query) -> tuple[float, Work] | None:
    """(for how many seconds the answer holds while the store is as it is, what makes it); None: no such path.

    Raises `Reject` for a query that makes no sense.
    """
    here, asked = page.here, Asked.of(query)
    match path.split("/")[2:]:
        case ["state"]:
            return 2.0, lambda: state(here, page.revision, page.delays())
        case ["quality"]:
            return FOREVER_S, lambda: quality(here, asked)
        case ["decisions"]:
            before = whole_number(query, "before", 1, LARGEST_ID)
            limit = whole_number(query, "limit", 1, 200) or 50
            noes = whole_number(query, "checks", 0, 1) != 0
            return FOREVER_S, lambda: decisions(here, before, limit, noes)
        case ["drift"]:
            return FOREVER_S, lambda: _strip(page, asked)
        case ["drift", check, feature] if _number(check):
            name = unquote(feature)
            return FOREVER_S, lambda: histogram(here, page.references, int(check), name)
        case ["distribution"]:
            return 15.0, lambda: distribution(here, asked)
        case ["segments"]:
            return FOREVER_S, lambda: segments(here)
        case ["traffic"]:
            return 4.0, lambda: traffic(here, page.meter, asked)
        case ["runs", run] if _number(run):
            return FOREVER_S, lambda: story(here, int(run))
        case ["versions", a, b] if _number(a) and _number(b):
            return FOREVER_S, lambda: compare(here.engine, here.registry, int(a), int(b))
        case _:
            return None


def _strip(page: Page, asked: Asked) -> Drift:
    found = drift(page.here, asked)
    if found.checks:
        page.references.soon(page.here, found.checks[-1].version)
    return found


def _number(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,9}", text) is not None and int(text) <= LARGEST_ID


async def answer_page(worker: Worker, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of `/page/...`. Raises `Denied` and `Reject`, for a store that does not answer, too."""
    given = {name: value for name, value in scope["headers"]}
    try:
        status, body, headers = await _answered(worker, scope, given, receive, send)
    except (UnknownRun, UnknownVersion) as error:
        raise Reject(404, str(error)) from None
    except FormatError as error:
        raise Reject(503, str(error)) from None
    except sa.exc.SQLAlchemyError as error:
        raise Reject(503, store_down(error), TRY_AGAIN_S) from None
    if status:
        await _send(send, status, body, headers)


async def _answered(
    worker: Worker, scope: Scope, given: Mapping[bytes, bytes], receive: Receive, send: Send
) -> tuple[int, bytes, Headers]:
    """(status, body, headers); status 0: it is answered already."""
    path, method = scope["path"], scope["method"]
    if path == "/page/session":
        return await _session(worker, scope, given, receive)
    if method not in ("GET", "HEAD"):
        raise Reject(405, f"the page takes GET here, writes go to /manage, got {method} {path[:80]}", allow="GET, HEAD")
    asker = worker.sessions.asker(given)
    allowed(asker.token, "read")
    page = await page_of(worker)
    if path == "/page/events":
        await events_of(page).stream(receive, send, lambda: _still_good(worker, asker))
        return 0, b"", []
    await page.turn()
    # The path as it was sent: a feature's name may have an encoded slash.
    raw = scope.get("raw_path", path.encode()).partition(b"?")[0].decode("latin-1")
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=20))
    found = _route(page, raw, query)
    if found is None:
        raise Reject(404, f"the page has no such part, got {path[:80]}")
    lasts_s, work = found
    key = (raw, *sorted(f"{name}={value}" for name, value in query.items()))
    made = await page.answer(key, lasts_s, work, given.get(REVISION, b"").decode("latin-1"))
    body: bytes = made.body
    etag = made.etag
    if isinstance(made.value, State):
        body = msgspec.json.encode(for_asker(made.value, asker.name, tuple(asker.token.scopes)))
        etag = etag_of(body)
    headers = [(b"etag", etag), (b"cache-control", b"private, no-cache"), (b"vary", b"cookie, authorization")]
    if given.get(b"if-none-match") == etag:
        return 304, b"", headers
    return 200, body if method == "GET" else b"", headers


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
