"""The JSON Schema of one record: what clients read to know what they may send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitoring.feature import MAX_CATEGORIES, Feature, instant, short
from monitoring.fits import CATEGORY_CHARS, FLOAT32_LIMIT, INSTANT_CHARS, TARGET_LIMIT

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema


def json_schema(schema: FeatureSchema, max_chars: int = CATEGORY_CHARS) -> dict[str, Any]:
    """JSON Schema (2020-12) of one record; the target is `$defs.label`, and `x-evergreen` says task and classes.

    Ranges and categories are descriptions and examples, never limits: values not seen in training are taken too.
    Text of more than `max_chars` characters is not.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "record",
        "description": "One row to predict. Every feature is required; null stands for an unknown value.",
        "type": "object",
        "properties": {feature.name: _property(feature, max_chars) for feature in schema.features},
        "required": list(schema.names),
        "additionalProperties": False,
        "examples": [schema.example(max_chars)],
        "$defs": {"label": _label_property(schema)},
        "x-evergreen": {
            "target": schema.target,
            "task": schema.task,
            "classes": list(schema.classes),
            "digest": schema.digest,
        },
    }


def _property(feature: Feature, max_chars: int) -> dict[str, Any]:
    extra: dict[str, Any] = {"kind": feature.kind, "nullable": feature.nullable}
    described = "never present in training"
    if feature.kind == "numeric":
        if feature.minimum is not None and feature.maximum is not None:
            extra |= {
                "minimum": short(feature.minimum),
                "maximum": short(feature.maximum),
                "integer": feature.integer,
            }
            whole = "whole numbers " if feature.integer else ""
            described = f"{whole}from {short(feature.minimum):g} to {short(feature.maximum):g} in training"
        found: dict[str, Any] = {
            "type": ["number", "null"],
            "exclusiveMinimum": -FLOAT32_LIMIT,  # beyond it, a float32 is infinite
            "exclusiveMaximum": FLOAT32_LIMIT,
        }
    elif feature.kind == "datetime":
        if feature.minimum is not None and feature.maximum is not None:
            extra |= {"minimum": instant(feature.minimum), "maximum": instant(feature.maximum)}
            described = f"from {instant(feature.minimum)} to {instant(feature.maximum)} in training"
        described = f"ISO-8601, UTC unless it has an offset; {described}"
        found = {"type": ["string", "null"], "format": "date-time", "maxLength": INSTANT_CHARS}
    elif feature.kind == "boolean":
        described = "true or false"
        found = {"type": ["boolean", "null"]}
    else:
        extra["categories"] = len(feature.categories)
        if feature.categories:
            most = " or more" if len(feature.categories) == MAX_CATEGORIES else ""
            described = f"{len(feature.categories)}{most} different values in training; others are accepted"
        found = {"type": ["string", "null"], "maxLength": max_chars}
    missing = "; null was seen in training" if feature.nullable else "; never null in training"
    found |= {"description": described + missing, "x-evergreen": extra}
    examples = feature.examples(max_chars)
    return found | ({"examples": examples} if examples else {})


def _label_property(schema: FeatureSchema) -> dict[str, Any]:
    if schema.task == "regression":
        limits = {"minimum": -TARGET_LIMIT, "maximum": TARGET_LIMIT}
        return {"title": schema.target, "type": "number", **limits}
    first = schema.classes[0]
    name = "string" if isinstance(first, str) else "boolean" if isinstance(first, bool) else "integer"
    return {"title": schema.target, "type": name, "enum": list(schema.classes)}
