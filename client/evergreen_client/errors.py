"""Every error of the client: what happened, with which value, and what to do.

EvergreenClientError
    BadRecords        before anything was sent: the records cannot be written as JSON, or lack a feature
    Unreachable       no answer: nobody listens, the connection broke, or it took too long
    NotEvergreen      an answer that no Evergreen gives
    NotFinished       a run takes longer than the caller would wait
    FileError         a file that cannot be scored as asked, or its output not written
        Unreadable    it cannot be read, or lacks a column
        CannotResume  the output exists already, or was begun from another input or otherwise
        BadRow        a row that cannot be answered; `.row` counts from 1
    StatusError       an answer other than 2xx; `.status` is its number
        Refused       400, 409, 415, 422 …: change the request; `.row` and `.column` say where
        Denied        401, 403: no token, or one that may not do this
        NotFound      404, 410: no such version, run or route; or it has been deleted
        TooLarge      413: send fewer at once
        Busy          429, 503: not now; `.retry_after_s` says when
        ServerError   500 and others: an error of the server, or of what stands in front of it

A test holds this tree equal to the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec


class EvergreenClientError(Exception):
    """Raised for every call that did not end well; the message says what happened and what to do."""


class BadRecords(EvergreenClientError, ValueError):
    """Raised before anything is sent, when rows cannot be sent as they are; the message names the column or value."""


class Unreachable(EvergreenClientError):
    """Raised when no answer came. `sent` says whether the server may have got the request all the same."""

    def __init__(self, url: str, why: str, *, sent: bool = False) -> None:
        super().__init__(
            f"no Evergreen answers at {url} ({why}): start one with `evergreen serve`, or give its address as the URL"
        )
        self.sent = sent


class NotEvergreen(EvergreenClientError):
    """Raised for an answer that no Evergreen gives: another program listens there."""


class NotFinished(EvergreenClientError):
    """Raised when a run takes longer than the caller would wait; the run goes on."""

    def __init__(self, run: int, state: str, waited_s: float) -> None:
        super().__init__(f"run {run} is still {state} after {waited_s:.0f} s; `evergreen runs {run}` shows it later")
        self.run = run
        self.state = state


class StatusError(EvergreenClientError):
    """Raised for an answer other than 2xx, always as one of the classes below.

    `status` is its number, `said` the server's own words, `request_id` what the server's log has it under.
    """

    def __init__(self, where: str, status: int, said: str, request_id: str = "") -> None:
        super().__init__(f"{where}: {status} {said}")
        self.status = status
        self.said = said
        self.request_id = request_id


class Refused(StatusError):
    """Raised when the request has to be changed.

    `row` counts from 0 in what was sent; `column` is the feature, or the field of a label. None where the server's
    words name none.
    """

    def __init__(self, where: str, status: int, said: str, request_id: str = "") -> None:
        super().__init__(where, status, said, request_id)
        self.row, self.column = place_of(said)


class Denied(StatusError):
    """Raised when there is no token, or one that may not do this: give `Client(url, token)` another one."""


class NotFound(StatusError):
    """Raised for a version, run, home or route that is not there, or no longer."""


class TooLarge(StatusError):
    """Raised when a request has more rows or bytes than the server takes at once: send fewer."""


class Busy(StatusError):
    """Raised when the server does not answer now: no model yet, too many requests, a limit that is reached.

    `retry_after_s` is when it may be tried again, in seconds; None where the server does not say.
    """

    def __init__(
        self, where: str, status: int, said: str, request_id: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(where, status, said, request_id)
        self.retry_after_s = retry_after_s


class ServerError(StatusError):
    """Raised for an error of the server, or of a proxy before it; the server's log has it under `request_id`."""


_CLASSES: Final[dict[int, type[StatusError]]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    410: NotFound,
    413: TooLarge,
    429: Busy,
    503: Busy,
}

_PLACE: Final = re.compile(r"(?:records|labels|ids)\[(\d+)\](?:\.(.+?)|\[(\"(?:[^\"\\]|\\.)*\")\]|\[[^]]*\])?: ")
"""How a message of the server begins that names a place: `records[3].age: …`, `records[3]["monthly fee"]: …`."""
_PATH: Final = re.compile(r" at `\$\.(?:records|labels|ids)\[(\d+)\](?:\.([^`]+))?`")
"""How the strict decoder ends its words: `Expected …, got … - at `$.labels[0].id``."""


def place_of(said: str) -> tuple[int | None, str | None]:
    """Row and column that a refusal names.

    >>> place_of('records[3].age: expected a number, got "old"')
    (3, 'age')
    >>> place_of('records[0]["monthly fee"]: missing; send null when the value is unknown')
    (0, 'monthly fee')
    >>> place_of("the body is empty")
    (None, None)
    """
    if found := _PLACE.match(said):
        row, plain, quoted = found.groups()
        return int(row), json.loads(quoted) if quoted else plain
    if found := _PATH.search(said):
        return int(found[1]), found[2]
    return None, None


def error_of(where: str, status: int, headers: Mapping[str, str], content: bytes) -> StatusError:
    """The error that an answer stands for; `where` is method and path, `headers` are looked up in small letters."""
    said, request_id = words_of(content), headers.get("x-request-id", "")
    kind = _CLASSES.get(status) or (ServerError if status >= 500 else Refused)
    if kind is Busy:
        return Busy(where, status, said, request_id, _seconds(headers.get("retry-after", "")))
    return kind(where, status, said, request_id)


def words_of(content: bytes) -> str:
    """What an answer that is not a 2xx says, in one line."""
    try:
        answer = msgspec.json.decode(content)
        said = answer["error"] if isinstance(answer, dict) and "error" in answer else str(answer)
    except msgspec.DecodeError:
        said = content[:200].decode(errors="replace")
    return " ".join(str(said).split()) or "no words"


def _seconds(retry_after: str) -> float | None:
    """`Retry-After` in seconds from now: it is a number of them, or a date."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with suppress(ValueError):
        at = parsedate_to_datetime(retry_after)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None
