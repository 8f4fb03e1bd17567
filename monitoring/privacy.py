"""Columns that clients send beside the features and that the record must not hold as they are.

A hashed value becomes `h:` and 16 hex digits of a keyed SHA-256: the same person stays the same person, and nobody
without the key can try values out. The text counts: "41" and 41 have one hash.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Any, Final

import msgspec

PREFIX: Final = "h:"
DIGITS: Final = 16


class _Body(msgspec.Struct, omit_defaults=True):
    records: list[dict[str, msgspec.Raw]]
    ids: list[str] | None = None


class Privacy:
    """What becomes of the columns in `hash` and `drop` before a request is recorded."""

    def __init__(self, hash: Iterable[str], drop: Iterable[str], key: bytes) -> None:
        self.hash = frozenset(hash)
        self.drop = frozenset(drop)
        self._key = key
        self._decode = msgspec.json.Decoder(_Body).decode

    def redact(self, body: bytes) -> bytes:
        """The request body (already decoded once, so known to be good) as the record keeps it."""
        request = self._decode(body)
        for record in request.records:
            for name in self.drop & record.keys():
                del record[name]
            for name in self.hash & record.keys():
                hidden = self.hidden(msgspec.json.decode(record[name]))
                record[name] = msgspec.Raw(msgspec.json.encode(hidden))
        return msgspec.json.encode(request)

    def column(self, name: str, values: list[Any]) -> list[str | None] | None:
        """The values of one of its columns as the record keeps them; None: not at all."""
        return None if name in self.drop else list(map(self.hidden, values))

    def hidden(self, value: Any) -> str | None:
        """A hashed column's value as it is recorded; null stays null."""
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # msgspec writes no more than 64 bits
        text = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
        return PREFIX + hmac.new(self._key, text, "sha256").hexdigest()[:DIGITS]
