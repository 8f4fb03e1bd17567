"""One call as a value: what is sent, whether it may be sent again, and what its answer means. Nothing here waits."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import urlencode

import httpx
import msgspec

from evergreen_client.answers import Answers
from evergreen_client.errors import BadRecords, NotEvergreen, Unreachable
from evergreen_client.ids import new_ids
from evergreen_client.repeats import Repeat

T = TypeVar("T")

JSON: Final = {"Content-Type": "application/json"}

IDLE_S: Final = 2.0
"""A connection idle for longer is not used again: servers close theirs after 5 s, and one that is closed at the very
moment of its reuse looks like a failure of the service."""

FINISHED: Final = ("done", "failed")
"""States in which a run no longer changes."""

_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and the meaning of its answer."""

    method: str
    path: str
    read: Callable[[bytes], T]
    """From the body of a 2xx to what the caller gets; raises `ValueError` when it is none of Evergreen."""
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat = "always"

    @property
    def where(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}"

    def answer(self, url: str, content: bytes) -> T:
        """What the caller gets. Raises `NotEvergreen`."""
        try:
            return self.read(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # msgspec's errors are ValueErrors
            words = " ".join(str(error).split())[:120]
            raise NotEvergreen(f"{url}{self.path}: no answer of Evergreen ({words}); is this its address?") from None


def predict(
    records: Sequence[Mapping[str, Any]], ids: Sequence[str] | None, record: bool = True, warnings: bool = False
) -> Call[Answers]:
    """The call of `/predict`; each record has an id, so that it may be sent again. Raises `BadRecords`."""
    known = new_ids(len(records)) if ids is None else list(ids)
    content = encoded(
        {
            "records": list(records),
            "ids": known,
            **({} if record else {"record": False}),
            **({"warnings": True} if warnings else {}),
        }
    )
    return Call("POST", "/predict", msgspec.json.Decoder(Answers).decode, content, JSON)


def feedback(labels: Sequence[Mapping[str, Any]]) -> Call[int]:
    """The call of `/feedback`. Raises `BadRecords`."""
    return Call(
        "POST", "/feedback", lambda body: int(_object(body)["accepted"]), encoded({"labels": list(labels)}), JSON
    )


def get(path: str, kind: type[T], asked: Mapping[str, Any] | None = None) -> Call[T]:
    """A call that reads an object of this kind; of what is asked for, None, "" and False are left out."""
    return Call("GET", path + _query(asked), lambda body: _of(kind, _object(body)))


def get_list(path: str, name: str, kind: type[T], asked: Mapping[str, Any] | None = None) -> Call[list[T]]:
    """A call that reads the list of objects of this kind which the answer has under this name."""

    def read(body: bytes) -> list[T]:
        return [_of(kind, each) for each in _object(body)[name]]

    return Call("GET", path + _query(asked), read)


def text(path: str, *, repeat: Repeat = "always") -> Call[str]:
    """A call that reads text."""
    return Call("GET", path, bytes.decode, repeat=repeat)


def write(path: str, body: Mapping[str, Any]) -> Call[int]:
    """A write to `/manage`: the number of the run that does it."""
    return Call("POST", path, _run, encoded(body), JSON, "unsent")


def push(model: bytes, why: str, trained_until: str) -> Call[int]:
    """The call that sends a model file, with its digest: what arrives broken is refused."""
    digest = b64encode(sha256(model).digest()).decode()
    headers = {"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"}
    path = "/manage/models" + _query({"why": why, "trained_until": trained_until})
    return Call("POST", path, _run, model, headers, "unsent")


def authorization(token: str) -> dict[str, str]:
    """The header that a token is sent in. Raises ValueError for a token that no header can carry."""
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that no HTTP header can carry: was it copied as a whole?")
    return {"Authorization": f"Bearer {token}"} if token else {}


def unreachable(url: str, error: Exception) -> Unreachable:
    """What httpx could not do, as an error of ours."""
    unsent = isinstance(error, (*_UNSENT, httpx.UnsupportedProtocol, httpx.InvalidURL))
    return Unreachable(url, " ".join(str(error).split()) or type(error).__name__, sent=not unsent)


def encoded(body: Any) -> bytes:
    """A body as JSON; NaN, infinity, NaT and pandas' NA become null. Raises `BadRecords`."""
    try:
        return msgspec.json.encode(body, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        words = " ".join(str(error).split())[:200]
        raise BadRecords(f"the records cannot be written as JSON: {words}; send numbers, text, true, false") from None


def _plain(value: Any) -> Any:
    """A value of numpy or pandas as JSON has it. Raises TypeError."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, date):  # a datetime too, and pandas' Timestamp
        return value.isoformat()
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        found = value.item()
        return None if isinstance(found, float) and not math.isfinite(found) else found
    raise TypeError(f"a value of the type {type(value).__name__}")


def _query(asked: Mapping[str, Any] | None) -> str:
    given = {name: value for name, value in (asked or {}).items() if value not in ("", None, False)}
    return f"?{urlencode(given)}" if given else ""


def _object(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


def _of(kind: type[T], found: Any) -> T:
    """The object, which has the keys that its kind promises. Raises ValueError."""
    if lacking := getattr(kind, "__required_keys__", frozenset()) - found.keys():
        raise ValueError(f'it lacks "{min(lacking)}"')
    return cast(T, found)


def _run(body: bytes) -> int:
    return int(_object(body)["run"])
