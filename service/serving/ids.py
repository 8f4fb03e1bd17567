"""Ids: of predictions, UUID version 7, made by the thousand; and of requests that came without one."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
    prefix, tail = _begin(noise_bytes)
    if n == 1:
        return [f"{prefix}{tail:012x}"]
    ids: list[str] = []
    for start in _blocks(prefix, tail, n):
        ids += [start + digits for digits in _LAST_DIGITS[: n - len(ids)]]
    return ids


def new_ids_in_a_row(n: int, noise_bytes: bytes) -> bytes:
    """The same as one text: 36 characters each, nothing between them."""
    import numpy as np

    ids = np.empty((n, 36), np.uint8)
    for at, start in enumerate(_blocks(*_begin(noise_bytes), n)):
        block = ids[at * 4096 : (at + 1) * 4096]
        block[:, :33] = np.frombuffer(start.encode(), np.uint8)
        block[:, 33:] = _last_digits()[: len(block)]
    return ids.tobytes()


def apart(ids: bytes) -> list[str]:
    """Ids that were one text."""
    text = ids.decode("ascii")
    return [text[at : at + 36] for at in range(0, len(text), 36)]


@lru_cache(1)
def _last_digits() -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer("".join(_LAST_DIGITS).encode(), np.uint8).reshape(-1, 3)


def _begin(noise_bytes: bytes) -> tuple[str, int]:
    """All of an id but its last twelve digits, and the number that those of the first one are."""
    stamp = time.time_ns() // 1_000_000
    noise = int.from_bytes(noise_bytes or _noise(), "big")
    head = f"{stamp:012x}"
    third = f"7{noise >> 68 & 0xFFF:03x}"
    fourth = f"{0x8000 | noise >> 48 & 0x3FFF:04x}"
    return f"{head[:8]}-{head[8:]}-{third}-{fourth}-", noise & 0x7FFF_FFFF_FFFF  # one bit free: n more never overflow


def _blocks(prefix: str, tail: int, n: int) -> Iterator[str]:
    """What 4,096 ids have in common, all digits but the last three, for at least n ids."""
    return (f"{prefix}{block:09x}" for block in range(tail >> 12, (tail >> 12) + n // 4096 + 1))
