"""How tables stand in the OpenAPI document: the bodies of `/predict` that are no JSON, and their answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any, Final

from service.serving.described import Described, JsonObject
from service.serving.request import ARROW, CSV, NDJSON
from service.serving.tables import answer_names

_TEXT: Final = {"type": "string", "minLength": 1}

HEADERS: Final[JsonObject] = {
    name: {"description": f"Of an answer that is no JSON: {what}", "schema": {"type": kind}}
    for name, what, kind in (
        ("Evergreen-Model", "the model's name", "string"),
        ("Evergreen-Version", "the version that answered", "integer"),
        ("Evergreen-Adaptation", "the adaptation in force, if one is", "integer"),
        ("Evergreen-Trace-Id", "the trace of the request, if it has one", "string"),
    )
}


def bodies(of: Described) -> JsonObject:
    """What else a body may be."""
    record = {"id": "order-17", **of.record} if of.model.decoder.named_by else of.record
    arrow = "An Arrow IPC stream: a column for each feature, of integers, floats or decimals, bool, strings (also in a "
    arrow += "dictionary), timestamps or dates; null and NaN are missing"
    return {
        ARROW.decode(): {"schema": {**_TEXT, "format": "binary", "description": arrow}},
        CSV.decode(): {
            "schema": {**_TEXT, "description": "A header of names, then a line a record; empty fields are missing"},
            "example": _csv([record, record.values()]),
        },
        NDJSON.decode(): {
            "schema": {**_TEXT, "description": "A record on each line"},
            "example": json.dumps(record, ensure_ascii=False) + "\n",
        },
    }


def answers(of: Described) -> JsonObject:
    """What else an answer may be."""
    classes = of.model.classes
    line = {"id": "order-17", "prediction": of.answered, **({"probabilities": of.chances} if classes else {})}
    row = ["order-17", of.answered, *(of.chances if classes else [])]
    arrow = (
        f"An Arrow IPC stream with the columns {', '.join(answer_names(classes))}; its schema's metadata has `model`, "
    )
    arrow += "`version`, `adaptation` and `trace_id`"
    return {
        ARROW.decode(): {"schema": {"type": "string", "format": "binary", "description": arrow}},
        CSV.decode(): {"schema": {"type": "string"}, "example": _csv([answer_names(classes), row])},
        NDJSON.decode(): {"schema": {"type": "string"}, "example": json.dumps(line, ensure_ascii=False) + "\n"},
    }


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    named = {True: "true", False: "false"}
    csv.writer(text, lineterminator="\n").writerows(
        [named[value] if isinstance(value, bool) else value for value in row] for row in rows
    )
    return text.getvalue()
