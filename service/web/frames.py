"""What a worker and the controller say to each other about the page, over a socket of the server's folder.

A connection carries one request, a line of JSON (`Asking`), and its answer, a line of JSON (`Said`) and a body. Whoever
may open the socket reads what the page shows: it is its owner's alone (0600), and the worker knows who asks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

SOCKET: Final = "page.sock"
LONGEST_PATH: Final = 100
"""Bytes of a path that every system takes as a socket's; Linux takes 107, macOS 103."""
EVENTS: Final = "/page/events"


class Asking(msgspec.Struct, frozen=True):
    path: str
    """As it was sent."""
    query: str = ""
    known: str = ""
    """The revision that whoever asks was told."""


class Said(msgspec.Struct, frozen=True):
    status: int = 200
    length: int | None = None
    """Of the body that follows, in bytes; None: up to the end of the connection."""
    etag: str = ""
    message: str = ""
    """Of a request that is refused; it has no body."""
    retry_after_s: int | None = None


class Made(NamedTuple):
    """A part of the page as JSON."""

    body: bytes
    etag: str


def etag_of(body: bytes) -> str:
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def line(frame: Asking | Said) -> bytes:
    return msgspec.json.encode(frame) + b"\n"


@contextmanager
def reached(run_dir: Path) -> Iterator[str]:
    """A path of the socket in this folder, short enough for the kernel as long as the context lasts (Linux)."""
    path = str(run_dir / SOCKET)
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield path
        return
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
