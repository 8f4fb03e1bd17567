"""What a skops file says of its model, read from its JSON: nothing is built, and scikit-learn is not imported.

What cannot be read here is None, and left to whoever loads the model.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

MAX_ARRAY_BYTES: Final = 1 << 24
"""Of an array of names or classes; a larger one is not read."""


class Said(NamedTuple):
    """What the estimators of the file were fitted to, and by which releases of scikit-learn."""

    releases: tuple[str, ...]
    features: list[str] | None
    width: int | None  # number of features
    classes: list[Any] | None


def read(path: Path, schema: Any) -> Said:
    """What the file at `path` says whose `schema.json` is `schema`."""
    with zipfile.ZipFile(path) as archive:
        file = _File(archive)
        try:
            first, last = file.ends(schema)
        except RecursionError:  # crafted
            first, last = {}, {}
        names = file.plain(first.get("feature_names_in_"))
        width = file.plain(first.get("n_features_in_"))
        classes = file.plain(last.get("classes_"))
    return Said(
        tuple(sorted({found for node in _nodes(schema) if (found := _release(node))})),
        [str(name) for name in names] if isinstance(names, list) else None,
        width if type(width) is int else None,
        classes if isinstance(classes, list) else None,
    )


class _File:
    """The nodes of one file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def ends(self, node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The attributes of what reads the columns, and of what answers: first and last step of a pipeline."""
        attributes = _attributes(node)
        pairs = [_items(step) for step in _items(attributes.get("steps"))] if _is_pipeline(node) else []
        if not pairs or any(len(pair) != 2 for pair in pairs):
            return attributes, attributes
        return self.ends(pairs[0][1])[0], self.ends(pairs[-1][1])[1]

    def plain(self, node: Any) -> Any:
        """The value of a node that is a number, a text or a list of these, however it is stored; else None."""
        try:
            loader = node["__loader__"]
            if loader == "JsonNode":
                return json.loads(node["content"])
            if loader == "NdArrayNode" and node.get("type") == "json":
                return [self.plain(item) for item in node["content"]]
            if loader == "NdArrayNode" and self._archive.getinfo(node["file"]).file_size <= MAX_ARRAY_BYTES:
                import numpy as np

                return np.load(io.BytesIO(self._archive.read(node["file"])), allow_pickle=False).tolist()
        except (KeyError, ValueError, TypeError, OSError, EOFError, RecursionError, zipfile.BadZipFile):
            return None
        return None


def _attributes(node: Any) -> dict[str, Any]:
    content = _content(_content(node)) if isinstance(node, dict) and node.get("__loader__") == "ObjectNode" else None
    return content if isinstance(content, dict) else {}


def _items(node: Any) -> list[Any]:
    content = _content(node)
    return content if isinstance(content, list) else []


def _content(node: Any) -> Any:
    return node.get("content") if isinstance(node, dict) else None


def _is_pipeline(node: Any) -> bool:
    return isinstance(node, dict) and (node.get("__module__"), node.get("__class__")) == (
        "sklearn.pipeline",
        "Pipeline",
    )


def _release(node: dict[str, Any]) -> str:
    found = node.get("_sklearn_version")
    return str(found["content"]).strip('"') if isinstance(found, dict) and "content" in found else ""


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value
