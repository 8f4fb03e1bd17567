"""Events to a webhook: one JSON object posted, soon given up, never in the way of the work it speaks of.

Each is a CloudEvent in binary mode (cloudevents.io, 1.0): its attributes are `ce-` headers, the body is the data. With
a secret it is signed as the Standard Webhooks specification (standardwebhooks.com) says, so that a receiver can check
who sent it, and when.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

logger = logging.getLogger(__name__)

EventState = Literal["happened", "began", "ended"]
"""A moment; or a trouble that lasts from one event to another with the same `trouble`."""
SECRET_PREFIX: Final = "whsec_"


class Event(NamedTuple):
    """What a person should know of."""

    id: str
    name: str
    state: EventState
    model: str
    at: float
    """Seconds since 1970 UTC."""
    facts: Mapping[str, Any]
    """JSON values."""

    def body(self) -> bytes:
        """The event as JSON. Raises TypeError for facts that are none."""
        told = {"event": self.name, "state": self.state, "id": self.id, "model": self.model, "at": self.at}
        return msgspec.json.encode({**told, **self.facts})

    def headers(self, body: bytes, secret: str = "") -> dict[str, str]:
        """The CloudEvents attributes; with a secret the signature, too."""
        found = {
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-source": f"/evergreen/{quote(self.model, safe='')}",
            "ce-type": f"evergreen.{self.name}.{self.state}",
            "ce-time": datetime.fromtimestamp(self.at, UTC).isoformat(),
        }
        if secret:
            stamp = str(int(self.at))
            signed = hmac.new(signing_key(secret), f"{self.id}.{stamp}.".encode() + body, "sha256").digest()
            found["webhook-id"], found["webhook-timestamp"] = self.id, stamp
            found["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
        return found


def signing_key(secret: str) -> bytes:
    """The key that a secret stands for: what is base64 behind `whsec_`, else the text itself.

    Raises ValueError when what is behind `whsec_` is no base64.
    """
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"what follows {SECRET_PREFIX} is no base64: {error}") from None


def send(
    url: str,
    event: Event,
    timeout_s: float,
    *,
    secret: str = "",
    backoff_s: Sequence[float] = (0.5, 2.0),
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Post an event, signed when there is a secret; whether the receiver took it (a 2xx answer). Never raises.

    `timeout_s` bounds each attempt's connecting, sending and waiting for the answer's head. After a connection error, a
    timeout, 408, 429 or 5xx it waits `backoff_s[0]`, tries again, and so on: as many retries as there are pauses, so at
    most `(len(backoff_s) + 1) * 3 * timeout_s + sum(backoff_s)` seconds. The receiver may see an event twice, then with
    one id. Redirects are not followed and the answer's body is not read. A failure is logged as a warning that names
    the host only: the path of a webhook is often its secret.
    """
    try:
        host = _host(url)
        body = event.body()
        headers = event.headers(body, secret)
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        logger.warning("alert not sent: %s", error)
        return False
    problem = ""
    for attempt in range(len(backoff_s) + 1):
        if attempt:
            sleep(backoff_s[attempt - 1])
        try:
            status = _post(url, body, headers, timeout_s)
        except Exception as error:  # an alert must not break what it speaks of, whatever the network stack raises
            problem = type(error).__name__
            continue
        if 200 <= status < 300:
            return True
        problem = f"status {status}"
        if status not in (408, 429) and status < 500:
            break
    logger.warning("alert not sent to %s: %s after %d attempt(s)", host, problem, attempt + 1)
    return False


def _host(url: str) -> str:
    """Host and port of a webhook's address. Raises ValueError, without the path, when it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the webhook's address begins with {parts.scheme or 'no scheme'}; use http:// or https://")
    if not parts.hostname:
        raise ValueError("the webhook's address has no host; write it like https://host/path")
    return parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"


def _post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> int:
    import httpx

    headers = {"content-type": "application/json", "user-agent": "evergreen", **headers}
    with (
        _httpx_silent(),
        httpx.Client(timeout=timeout_s, follow_redirects=False) as client,
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        return response.status_code


@contextmanager
def _httpx_silent() -> Iterator[None]:
    """Keep this thread's address out of the log: httpx logs every request's full URL at INFO."""
    here = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    log = logging.getLogger("httpx")
    log.addFilter(elsewhere)
    try:
        yield
    finally:
        log.removeFilter(elsewhere)
