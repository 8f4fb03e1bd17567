"""What a request says before its body is read, and how it is refused."""

from __future__ import annotations

import re
from typing import Final

from monitoring.errors import EvergreenError

LENGTH_DIGITS: Final = 18
"""The most digits of a content length: Python refuses to read very long numbers."""

FORWARDED: Final = (b"x-forwarded-for", b"forwarded")
"""Headers by which a proxy on this machine says that the client is elsewhere."""

TRACEPARENT: Final = b"traceparent"
"""Header by which a caller names the trace that a request belongs to."""

ACCEPT: Final = b"accept"

RARE: Final = frozenset({*FORWARDED, TRACEPARENT, ACCEPT})

JSON: Final = b"application/json"
ARROW: Final = b"application/vnd.apache.arrow.stream"
CSV: Final = b"text/csv"
NDJSON: Final = b"application/x-ndjson"
KINDS: Final = (JSON, ARROW, CSV, NDJSON)
"""What a body of `/predict`, and its answer, may be."""

ANY_ANSWER: Final = frozenset({b"*/*", JSON, b"application/json, text/plain, */*", b"application/json, */*"})
"""Values of `Accept` as most clients send them, to which an answer in JSON is what they want."""

ENCODINGS: Final = (b"gzip", b"zstd")

_ID: Final = re.compile(rb"[!-~]{1,200}")
_WEIGHT: Final = re.compile(rb"[01](\.[0-9]{0,3})?")


class Reject(EvergreenError):
    """Raised inside a handler: the request ends with this status and these words."""

    def __init__(
        self,
        status: int,
        message: str,
        retry_after_s: int | None = None,
        *,
        closes: bool = False,
        allow: str = "POST",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.allow = allow  # of a 405: the methods it takes
        self.closes = closes
        """Whether the connection ends with it: what the client is sending is not read."""


def body_kind(value: bytes, taken: tuple[bytes, ...] = KINDS) -> bytes:
    """Which of `taken` a body is by its own account. Raises `Reject`."""
    kind = value.split(b";", 1)[0].strip().lower()
    if kind not in taken:
        shown, known = kind.decode("latin-1")[:60], b", ".join(taken).decode()
        raise Reject(415, f"content type {shown!r}: send {known} (curl: -H 'content-type: application/json')")
    return kind


def check_content_type(value: bytes) -> None:
    """Raise `Reject` when a request is not JSON by its own account."""
    body_kind(value, (JSON,))


def body_encoding(value: bytes, taken: tuple[bytes, ...] = ENCODINGS) -> bytes:
    """How a body is compressed, b"" when it is not. Raises `Reject`."""
    encoding = value.strip().lower()
    if encoding in (b"", b"identity"):
        return b""
    if encoding not in taken:
        shown = value.decode("latin-1")[:60]
        known = f"{b' or '.join(taken).decode()}, or " if taken else ""
        raise Reject(415, f"content encoding {shown!r}: send the body in {known}without Content-Encoding")
    return encoding


def answer_kind(accept: bytes, kind: bytes) -> bytes:
    """Which of `KINDS` the answer to a body of `kind` is: what `Accept` likes best, and when it names none the same.

    >>> answer_kind(b"text/html, text/csv;q=0.5", JSON), answer_kind(b"*/*", ARROW) == ARROW
    (b'text/csv', True)
    """
    found, best = kind, 0.0
    for one in accept.split(b","):
        name, *parameters = (part.strip().lower() for part in one.split(b";"))
        weight = 1.0
        for parameter in parameters:
            if parameter[:2] == b"q=":
                weight = float(parameter[2:]) if _WEIGHT.fullmatch(parameter[2:]) else 0.0
        if name == b"*/*" or (name == b"application/*" and kind != CSV):
            name = kind
        if weight > best and name in KINDS:
            found, best = name, weight
    return found


def echoed(request_id: bytes) -> bytes:
    """The `X-Request-Id` as the answer repeats it; nothing when it is long or has other than visible characters."""
    return request_id if _ID.fullmatch(request_id) else b""


def content_length(value: bytes) -> int:
    if len(value) > LENGTH_DIGITS:
        raise Reject(400, f"content-length: {len(value)} digits; send the body's length in bytes")
    return int(value)
