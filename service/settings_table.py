"""The settings as a table: docs/reference/settings.md shows it, and `evergreen init` writes its defaults."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr

from service.settings import PREFIX, SECTIONS


class Row(NamedTuple):
    """One line of the settings table."""

    key: str
    """As in the file: `serve.port`."""
    default: str
    """As TOML."""
    description: str
    """Unit; why this default."""

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace(".", "__").upper()


def table() -> list[Row]:
    """Every setting with its default and its reason, in the order of the file."""
    return [
        Row(
            f"{section}.{key}",
            _toml(field.get_default(call_default_factory=True)),
            " ".join((field.description or "").split()),
        )
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
    ]


def _toml(value: Any) -> str:
    if isinstance(value, SecretStr):
        return '""'
    if value is None:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, (tuple, list, set, frozenset)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:_}"
    return json.dumps(value, ensure_ascii=False)
