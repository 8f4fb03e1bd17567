"""Ids of predictions, made before the request: a request that is sent again carries the same ones."""

from __future__ import annotations

import os
import time

_RANDOM_BITS = 74


def new_ids(n: int) -> list[str]:
    """`n` ids, UUID version 7 (RFC 9562): the clock's millisecond, and a random number that grows within the list."""
    stamp = time.time_ns() // 1_000_000
    head = f"{stamp:012x}"
    head = f"{head[:8]}-{head[8:]}-7"
    first = int.from_bytes(os.urandom(10), "big") >> (80 - _RANDOM_BITS + 1)  # one bit free: n more never overflow
    return [
        f"{head}{number >> 62:03x}-{0x8000 | number >> 48 & 0x3FFF:04x}-{number & 0xFFFF_FFFF_FFFF:012x}"
        for number in range(first, first + n)
    ]
