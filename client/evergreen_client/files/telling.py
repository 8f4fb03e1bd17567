"""How far a run is, for people: a bar on a terminal, a line at times elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from evergreen_client.files.scoring import Progress

LINES_EVERY_S: Final = 10.0
BARS_EVERY_S: Final = 0.1
_BAR_CHARS: Final = 30


@contextmanager
def telling(to: TextIO | None = None, *, every_s: float = LINES_EVERY_S) -> Iterator[Callable[[Progress], None]]:
    """An `on_progress` that tells on `to` (stderr): on a terminal by a bar, else by a line every `every_s` seconds."""
    out = to or sys.stderr
    terminal = out.isatty() and os.environ.get("TERM") != "dumb"
    pause = BARS_EVERY_S if terminal else every_s
    due = time.monotonic() + pause

    def told(now: Progress) -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + pause
        if terminal:
            full = round(_BAR_CHARS * now.share)
            bar = "█" * full + "·" * (_BAR_CHARS - full)
            out.write(f"\r\x1b[K{bar} {now.share:4.0%}  {in_words(now)}")
        else:
            out.write(f"{now.share:4.0%} {in_words(now)}\n")
        out.flush()

    try:
        yield told
    finally:
        if terminal:
            out.write("\r\x1b[K")
            out.flush()


def in_words(now: Progress) -> str:
    """Rows, rows a second, what is left, refused rows and versions."""
    parts = [f"{now.rows:,}{f' of {now.of:,}' if now.of is not None else ''} rows"]
    if now.new and now.seconds:
        parts.append(f"{now.new / now.seconds:,.0f} rows/s")
    if now.left_s is not None:
        parts.append(f"{_clock(now.left_s)} left")
    if now.refused:
        parts.append(f"{now.refused:,} refused")
    if now.versions:
        parts.append(f"version {', '.join(map(str, now.versions))}")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
