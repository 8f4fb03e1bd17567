"""Ids: of predictions, UUID version 7, made by the thousand; and of requests that came without one."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from typing import Final


def _pool() -> Iterator[bytes]:
    """Ten random bytes a time, of the operating system: one system call for 400 requests instead of one for each."""
    while True:
        block = os.urandom(4000)
        for at in range(0, 4000, 10):
            yield block[at : at + 10]


_noise: Final = _pool().__next__  # a generator runs in one thread at a time: the event loop's


REQUEST_MARK: Final = os.urandom(6).hex().encode() + b"-"
"""What the ids of requests begin with that came to this process without one; behind it a number, in hex."""
next_request: Final = itertools.count(1).__next__


def new_request_id() -> bytes:
    """The id of a request that came without one."""
    return b"%b%x" % (REQUEST_MARK, next_request())


_LAST_DIGITS: Final = tuple(f"{number:03x}" for number in range(4096))


def new_ids(n: int, noise_bytes: bytes = b"") -> list[str]:
    """n prediction ids, UUID version 7 (RFC 9562), growing within the list and with time.

    In another thread than the event loop's they need `noise_bytes`, ten random ones.
    """
    stamp = time.time_ns() // 1_000_000
    noise = int.from_bytes(noise_bytes or _noise(), "big")
    head = f"{stamp:012x}"
    third = f"7{noise >> 68 & 0xFFF:03x}"
    fourth = f"{0x8000 | noise >> 48 & 0x3FFF:04x}"
    prefix = f"{head[:8]}-{head[8:]}-{third}-{fourth}-"
    tail = noise & 0x7FFF_FFFF_FFFF  # one bit free: n more never overflow
    if n == 1:
        return [f"{prefix}{tail:012x}"]
    ids: list[str] = []
    for block in range(tail >> 12, (tail >> 12) + n // 4096 + 1):  # 4096 share all digits but the last three
        start = f"{prefix}{block:09x}"
        ids += [start + digits for digits in _LAST_DIGITS[: n - len(ids)]]
    return ids
