"""What is wrong with a configuration, in words: where it stands, what was expected, what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from monitoring.nearest import did_you_mean
from service.settings import PREFIX, SECTIONS

_SHOWN_CHARACTERS: Final = 60


def problems(error: ValidationError, origin: Mapping[tuple[str, str], str], file: str) -> Iterator[str]:
    seen = set()
    for problem in error.errors(include_url=False):
        place = tuple(str(part) for part in problem["loc"])
        section, key = (*place, "", "")[:2]
        if (section, key) in seen:  # one line a key, even when a union reports each of its members
            continue
        seen.add((section, key))
        where = origin.get((section, key)) or next((by for (s, _), by in origin.items() if s == section), file)
        name = where if where.startswith(PREFIX) else f"{where}: [{section}]" + (f" {key}" if key else "")
        if problem["type"] == "extra_forbidden":
            known = list(SECTIONS[section].model_fields) if section in SECTIONS else list(SECTIONS)
            elsewhere = [f"[{other}] {key}" for other, model in SECTIONS.items() if key in model.model_fields]
            hint = did_you_mean(key, known) or (f", did you mean {elsewhere[0]}?" if elsewhere else "")
            yield f"{name}: no such setting{hint or '; known: ' + ', '.join(known)}"
        elif problem["type"] == "value_error":
            yield f"{name}: {problem['ctx']['error']}"
        else:
            yield f"{name}: {_expected(problem['msg'])}, got {_shown(problem['input'], section, key)}"


def _expected(message: str) -> str:
    text = message.removeprefix("Input should be a valid ").removeprefix("Input should be ")
    if text == message:
        return message
    text = _IN_OUR_WORDS.get(text.split(",")[0], text)
    return f"expected a value {text}" if text.startswith(("greater", "less")) else f"expected {text}"


_IN_OUR_WORDS: Final = {
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
}


def _shown(value: Any, section: str, key: str) -> str:
    if (section, key) in (("security", "token"), ("store", "url"), ("alerts", "webhook_url")):
        return "a value that is not shown"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
