"""Secrets for the store, readable only with a key that the store does not have.

AES-256-GCM (NIST SP 800-38D; `cryptography`), under a key that HKDF (RFC 5869) makes of `[security] key`. The secret's
name is authenticated with it, so that one wrapped secret cannot be put in the place of another.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from monitoring.errors import EvergreenError

_NONCE_BYTES: Final = 12


class WrongKey(EvergreenError):
    """Raised when a secret was not wrapped with this key, or was changed since."""


class Wrapping:
    """What one key wraps and opens. The key is long and random: nothing is done against guessing."""

    def __init__(self, key: str) -> None:
        self._cipher = AESGCM(_derived(key, b"evergreen wraps"))
        self.name = _derived(key, b"evergreen names")[:4].hex()
        """Tells one key from another, and says nothing of it."""

    def wrap(self, secret: bytes, name: str) -> bytes:
        """The secret for the store; another text at each call."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, name.encode())

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """The secret. Raises `WrongKey`."""
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError):
            raise WrongKey(
                f"the secret {name!r} in the store does not open with key {self.name}: it was wrapped with another, or "
                "changed"
            ) from None


def _derived(key: str, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(key.encode())
