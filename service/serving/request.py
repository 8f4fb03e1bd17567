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

RARE: Final = frozenset({*FORWARDED, TRACEPARENT})

_ID: Final = re.compile(rb"[!-~]{1,200}")


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


def check_content_type(value: bytes) -> None:
    """Raise `Reject` when a request is not JSON by its own account."""
    kind = value.split(b";", 1)[0].strip().lower()
    if kind != b"application/json":
        shown = kind.decode("latin-1")[:60]
        raise Reject(415, f"content type {shown!r}: send application/json (curl: -H 'content-type: application/json')")


def check_content_encoding(value: bytes) -> None:
    """Raise `Reject` when the body is compressed."""
    if value.strip().lower() not in (b"", b"identity"):
        shown = value.decode("latin-1")[:60]
        raise Reject(415, f"content encoding {shown!r}: send the body as it is, without Content-Encoding")


def echoed(request_id: bytes) -> bytes:
    """The `X-Request-Id` as the answer repeats it; nothing when it is long or has other than visible characters."""
    return request_id if _ID.fullmatch(request_id) else b""


def content_length(value: bytes) -> int:
    if len(value) > LENGTH_DIGITS:
        raise Reject(400, f"content-length: {len(value)} digits; send the body's length in bytes")
    return int(value)
