"""Large bodies: how many values they hold, before a decoder makes an object of each of them.

A body of 16 MB may hold 4 million short strings, which as objects are 200 MB: msgspec looks at the length of a list
only when it has decoded it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from monitoring.decode import InvalidRequest

SMALL_BYTES: Final = 2**20
"""Bodies up to this size hold at most half a million values, whatever is in them."""

_CHUNK_BYTES: Final = 2**20
_QUOTE, _COMMA, _BACKSLASH = b'",\\'


def check_values(body: bytes | bytearray, most: int, most_text: int, what: str) -> None:
    """Raise `InvalidRequest` when a large JSON body holds more than `most` values, or a text of over `most_text` bytes.

    The first is a 413 that ends in `what`, the second a 400. Smaller bodies are not looked at; nor is a text in ASCII,
    which takes no more room than its bytes.
    """
    if len(body) <= SMALL_BYTES or (body.isascii() and _commas(body) < most):
        return
    for values, longest in measured(body):
        if values > most:
            raise InvalidRequest(413, f"the body holds more than {most} values; {what}", "too many values")
        if longest > most_text:
            message = f"the body holds a text of more than {most_text} bytes; send shorter ones"
            raise InvalidRequest(400, message, "a text too long")


def _commas(body: bytes | bytearray) -> int:
    """All of them, counted beside other threads."""
    starts = range(0, len(body), _CHUNK_BYTES)
    chunks = (np.frombuffer(body, np.uint8, min(_CHUNK_BYTES, len(body) - at), at) for at in starts)
    return sum(int(np.count_nonzero(chunk == _COMMA)) for chunk in chunks)


def measured(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """How many values a JSON text has, names not counted, and the bytes of its longest string, megabyte by megabyte.

    Values are one more than the commas outside strings. The last pair is that of the whole text.

    >>> list(measured(b'{"a": [1, "x, y"], "b": 2}'))
    [(3, 4)]
    """
    commas, longest, inside, escaped, last = 0, 0, 0, False, -1
    for start in range(0, len(body), _CHUNK_BYTES):
        chunk = np.frombuffer(body, np.uint8, min(_CHUNK_BYTES, len(body) - start), start)
        quotes = chunk == _QUOTE
        escaped = _drop_escaped(chunk, quotes, escaped)
        within = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ inside
        commas += int(np.count_nonzero((chunk == _COMMA) & (within == 0)))
        places = np.flatnonzero(quotes) + start
        if len(places):
            ends = np.diff(places, prepend=last)[0 if inside else 1 :: 2]  # every second gap is a string
            longest = max(longest, int(ends.max(initial=1)) - 1)
            last = int(places[-1])
        inside = int(within[-1])
        yield commas + 1, max(longest, start + len(chunk) - 1 - last) if inside else longest


def _drop_escaped(chunk: np.ndarray, quotes: np.ndarray, escaped: bool) -> bool:
    """Take the escaped quotes out of `quotes`; whether the first byte behind the chunk is escaped."""
    slashes = np.flatnonzero(chunk == _BACKSLASH)
    if escaped:
        quotes[0] = False
        if len(slashes) and slashes[0] == 0:
            slashes = slashes[1:]
    if not len(slashes):
        return False
    # In a run of backslashes every second one is itself escaped; the last one escapes what follows an odd run.
    begins = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
    lengths = np.diff(begins, append=len(slashes))
    behind = slashes[begins] + lengths
    odd = behind[lengths % 2 == 1]
    if len(odd) and odd[-1] == len(chunk):
        quotes[odd[:-1]] = False
        return True
    quotes[odd] = False
    return False
