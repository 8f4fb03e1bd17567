"""Files with a secret (0600), made once however many processes ask at the same moment; and who this home is."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings


def secret_in(path: Path, make: Callable[[], str]) -> tuple[bytes, bool]:
    """The secret in a file, and whether this call made it because the file was missing or empty; its mode is 0600.

    Any number of processes may ask at once: all get the same. Raises `OSError`.
    """
    with alone_with(path) as descriptor:
        known = os.read(descriptor, 4096).strip()
        if known:
            return known, False
        os.fchmod(descriptor, 0o600)
        made = make().encode()
        os.write(descriptor, made + b"\n")
        os.fsync(descriptor)
        return made, True


@contextmanager
def alone_with(path: Path) -> Iterator[int]:
    """The descriptor of a file, made (0600) when missing; other processes that ask for it wait until it is let go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def home_id(settings: Settings) -> str:
    """The name of this `var` among those of the deployment: made at first start, gone with the folder.

    Not the host's name: two homes may be on one host, and a host that was wiped has none of what it had to forget.
    Raises `OSError`.
    """
    return secret_in(settings.var / "home", lambda: secrets.token_hex(8))[0].decode()
