"""Moments as people type them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def since(text: str, now: float) -> float:
    """Seconds since 1970 UTC of `2h` before `now`, the last `10:05`, `2026-11-23`, an ISO 8601 time, or seconds.

    A time without an offset is one of this machine. Raises ValueError when it is none of these.

    >>> since("2h", 10_000.0), since("1764000000", 0.0)
    (2800.0, 1764000000.0)
    """
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text):
        return now - float(ago[1]) * UNITS_S[ago[2]]
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
        today = datetime.fromtimestamp(now)
        clock = datetime.strptime(text, "%H:%M:%S" if text.count(":") == 2 else "%H:%M").time()
        found = datetime.combine(today, clock)
        return (found if found <= today else found - timedelta(days=1)).timestamp()
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        return float(text)
    return datetime.fromisoformat(text).timestamp()
