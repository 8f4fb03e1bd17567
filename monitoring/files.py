"""A file takes the place of another whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

UNFINISHED: Final = ".writing"
"""Ending of a file that is being written. One that stays was left by a process that was killed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write meanwhile: that file takes the place of `path` when the block ends well, else it is deleted.

    It lies in the same folder, which is made when it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, durable: bool = True, mode: int | None = None) -> None:
    """`content` at `path`, whole or not at all; when `durable` also after a power failure.

    `mode` are the permissions of the file, by default what the umask leaves of 0666.
    """
    with (
        replacing(path) as beside,
        open(beside, "xb", opener=lambda p, flags: os.open(p, flags, mode or 0o666)) as file,
    ):
        if mode is not None:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
