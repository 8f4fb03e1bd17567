"""Compressed bodies, unpacked within a bound: a bomb costs no more than the largest body that may be sent."""

from __future__ import annotations

import zlib
from typing import Final

from monitoring.decode import InvalidRequest

_GZIP: Final = 16 + zlib.MAX_WBITS
_FRAME: Final = b"\x28\xb5\x2f\xfd"
_SKIPPED: Final = b"\x2a\x4d\x18"  # of a frame that is to be skipped, without its first byte
MOST_FRAMES: Final = 64
"""Of a body in zstd: each costs some microseconds, even an empty one of nine bytes."""


def unpacked(body: bytes, encoding: bytes, most: int) -> bytes:
    """A body that was sent in gzip or zstd.

    Raises `InvalidRequest`: 413 for more than `most` bytes, of which no more than that are unpacked, 400 for a body
    that is broken, cut short, or followed by something else.
    """
    try:
        content = _gunzip(body, most) if encoding == b"gzip" else _unzstd(body, most)
    except (zlib.error, OSError, ValueError) as error:
        words, name = str(error).partition("\n")[0][:200], encoding.decode()
        raise InvalidRequest(
            400, f"the body is no whole {name} stream: {words}; send it again", "not unpacked"
        ) from None
    if len(content) > most:
        message = f"the body has more than {most} bytes when it is unpacked; send fewer ([serve] max_request_bytes)"
        raise InvalidRequest(413, message, "too many bytes unpacked")
    return content


def _gunzip(body: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    content = unpacker.decompress(body, most + 1)
    if len(content) <= most:
        if not unpacker.eof:
            raise ValueError("it is cut short")
        if unpacker.unused_data:
            raise ValueError(f"{len(unpacker.unused_data)} bytes follow it")
    return content


def _unzstd(body: bytes, most: int) -> bytes:
    if not body.startswith(_FRAME):
        raise ValueError("it does not begin like one")
    if body.count(_FRAME) + body.count(_SKIPPED) > MOST_FRAMES:
        raise ValueError(f"it has more than {MOST_FRAMES} frames")
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
        content: bytes = stream.read(most + 1)
    return content
