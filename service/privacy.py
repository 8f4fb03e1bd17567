"""The key that hashed columns are hashed with, and what the record of this deployment keeps to itself."""

from __future__ import annotations

import fcntl
import os
import secrets
from typing import TYPE_CHECKING

from service.settings import SettingsError

if TYPE_CHECKING:
    from monitoring.privacy import Privacy
    from service.settings import Settings


def open_privacy(settings: Settings) -> Privacy | None:
    """What becomes of `[privacy]`'s columns; None when none is named, so that nothing is done on the hot path."""
    named = settings.privacy
    if not named.names:
        return None
    from monitoring.privacy import Privacy

    return Privacy(named.hash, named.drop, _key(settings) if named.hash else b"")


def _key(settings: Settings) -> bytes:
    """The key in `var/privacy.key`, made (0600) when missing; any number of processes may ask at once."""
    path = settings.var / "privacy.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            key = os.read(descriptor, 4096).strip()
            if not key:
                os.fchmod(descriptor, 0o600)
                key = secrets.token_hex(32).encode()
                os.write(descriptor, key + b"\n")
                os.fsync(descriptor)
            return key
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SettingsError(
            f"cannot keep the key of [privacy] hash in {path}: {error.strerror}; make the folder writable"
        ) from None
