"""Events to a webhook: one JSON object posted, soon given up, never in the way of the work it speaks of."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

logger = logging.getLogger(__name__)


def send(
    url: str,
    event: Mapping[str, Any],
    timeout_s: float,
    *,
    backoff_s: Sequence[float] = (0.5, 2.0),
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Post `event` as JSON and tell whether the receiver took it (a 2xx answer). Never raises.

    `timeout_s` bounds each attempt's connecting, sending and waiting for the answer's head. After a connection error,
    a timeout, 408, 429 or 5xx it waits `backoff_s[0]`, tries again, and so on: as many retries as there are pauses, so
    at most `(len(backoff_s) + 1) * 3 * timeout_s + sum(backoff_s)` seconds. The receiver may see an event twice.
    Redirects are not followed and the answer's body is not read. A failure is logged as a warning that names the host
    only: the path of a webhook is often its secret.
    """
    try:
        host = _host(url)
        body = msgspec.json.encode(event)
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        logger.warning("alert not sent: %s", error)
        return False
    problem = ""
    for attempt in range(len(backoff_s) + 1):
        if attempt:
            sleep(backoff_s[attempt - 1])
        try:
            status = _post(url, body, timeout_s)
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


def _post(url: str, body: bytes, timeout_s: float) -> int:
    import httpx

    headers = {"content-type": "application/json", "user-agent": "evergreen"}
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
