"""When is a request sent again? Only when it cannot be done twice by that, and only while there is time.

What may be sent again, and why nothing is counted twice:

- Nothing was sent (nobody listens, the connection was refused): every request.
- It may have been done (the connection broke, no answer in time, 429, 502, 503, 504): what only reads, labels (of the
  same label twice the newest counts), and predictions, as every record goes out with an id. An answer that was lost
  leaves its row in the record; the same row stands there again under the same id, and the server gives the label of an
  id to the newest row only, so no label is learnt from twice.
- A write to `/manage` is not: each one is a run of its own.
"""

from __future__ import annotations

import random
from typing import Final, Literal

from evergreen_client.errors import Busy, EvergreenClientError, ServerError, Unreachable

Repeat = Literal["never", "unsent", "always"]
"""Whether a request may be sent again: not at all; when it was not sent; also when it may have been done."""

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
PASSING: Final = (502, 504)
"""Statuses of a proxy that does not reach its server now."""


def pause_before_repeat(error: EvergreenClientError, repeat: Repeat, tries: int, left_s: float) -> float | None:
    """Seconds to wait before the request is sent again after `tries` tries; None when it is not.

    `left_s` is the time that is left for repeats. What `Retry-After` asks for is waited, or nothing is repeated.
    """
    if repeat == "never":
        return None
    asked = 0.0
    if isinstance(error, Unreachable):
        may = repeat == "always" or not error.sent
    elif isinstance(error, Busy):
        may, asked = repeat == "always", error.retry_after_s or 0.0
    else:
        may = repeat == "always" and isinstance(error, ServerError) and error.status in PASSING
    # Clients that were turned away together do not come back together.
    doubled = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10))
    pause = asked + doubled * random.uniform(0.5, 1.0)
    return pause if may and pause <= left_s else None
