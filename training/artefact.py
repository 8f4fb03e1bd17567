"""The artefact folder of one model version: its files, its manifest and the proof that nothing changed in it.

Imported by API workers: standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from monitoring.errors import CannotGoOn
from monitoring.files import write_atomically

FORMAT: Final = 1
"""Format of the manifest. Bump it when a reader of the old one would go wrong; keep reading the old ones."""

MANIFEST: Final = "manifest.json"
PIPELINE: Final = "model.skops"
TWIN: Final = "model.onnx"
SCHEMA: Final = "schema.json"
REFERENCE: Final = "reference.parquet"


class ArtefactError(CannotGoOn, RuntimeError):
    """Raised when an artefact folder is missing a file, was changed, or was written by a newer Evergreen."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, format checked, digests not: `verify` does that.

    Raises `ArtefactError` when there is none, it is not JSON, or its format is newer than `FORMAT`.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist: {folder} is not an artefact folder") from None
    except ValueError as error:
        raise ArtefactError(f"{path} is not JSON ({error}): fetch or train the version again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise ArtefactError(
            f"{path} has format {found!r}, this program reads 1 to {FORMAT}: upgrade evergreen, or train again"
        )
    assert isinstance(manifest, dict)
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`manifest` as written to `folder` last of all its files: with the format and the digest of each other file.

    Numbers that JSON cannot carry (NaN, infinities) become null.
    """
    digests = {
        path.name: file_digest(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST and not path.name.startswith((".", "result."))
    }
    complete = plain({**manifest, "format": FORMAT, "digests": digests})
    assert isinstance(complete, dict)
    write_atomically(folder / MANIFEST, json.dumps(complete, indent=2, allow_nan=False).encode())
    return complete


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, when each file it lists is there with the digest it lists.

    Raises `ArtefactError` naming the file, the expected and the found digest.
    """
    manifest = read_manifest(folder)
    digests = manifest.get("digests")
    if not isinstance(digests, dict) or PIPELINE not in digests or SCHEMA not in digests:
        raise ArtefactError(f"{folder / MANIFEST} lists no digest of {PIPELINE} and {SCHEMA}: train the version again")
    for name, expected in digests.items():
        if "/" in name or name in ("", ".", ".."):
            raise ArtefactError(f"{folder / MANIFEST} lists {name!r}, which is not a file name of this folder")
        try:
            found = file_digest(folder / name)
        except FileNotFoundError:
            raise ArtefactError(
                f"{folder / name} does not exist, the manifest expects sha256 {expected}: fetch the version again"
            ) from None
        if found != expected:
            raise ArtefactError(
                f"{folder / name} was changed: expected sha256 {expected}, found {found}: fetch the version again"
            )
    return manifest


def file_digest(path: Path) -> str:
    """sha256 of the file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """`value` as JSON can carry it: NumPy scalars and arrays unwrapped, tuples as lists, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if value - value == 0 else None  # inf - inf and nan - nan are nan
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot stand in a manifest: {value!r}")
