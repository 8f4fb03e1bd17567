"""The artefact folder of one model version: its files, its manifest and the proof that nothing changed in it.

Imported by API workers: msgspec and the standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from monitoring.errors import CannotGoOn
from monitoring.files import write_atomically
from training.manifest import MANIFEST_FORMAT, Manifest, manifest_of

MANIFEST: Final = "manifest.json"
PIPELINE: Final = "model.skops"
TWIN: Final = "model.onnx"
SCHEMA: Final = "schema.json"
TREES: Final = "trees.bin"
"""What the compiled engine answers from; not of every version."""
REFERENCE: Final = "reference.parquet"
UNSEEN: Final = "unseen.npz"
"""Positions in the snapshot, and answers to these rows by models that had not learned them; not of every version."""


class ArtefactError(CannotGoOn, RuntimeError):
    """Raised when an artefact folder is missing a file or was changed."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, format checked, digests not: `verify` does that.

    Raises `ArtefactError` when there is none or it is not JSON, `FormatError` when this release cannot read it.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist: {folder} is not an artefact folder") from None
    except ValueError as error:
        raise ArtefactError(f"{path} is not JSON ({error}): fetch or train the version again") from None
    return manifest_of(document, str(path))


def write_manifest(folder: Path, document: Mapping[str, Any]) -> Manifest:
    """The manifest as written to `folder` last of all its files: with the format and the digest of each other file.

    Numbers that JSON cannot carry (NaN, infinities) become null.
    """
    digests = {
        path.name: file_digest(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST and not path.name.startswith((".", "result."))
    }
    complete = plain({**document, "format": MANIFEST_FORMAT, "digests": digests})
    manifest = manifest_of(complete, str(folder / MANIFEST))
    write_atomically(folder / MANIFEST, json.dumps(complete, indent=2, allow_nan=False).encode())
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of `folder`, when each file it lists is there with the digest it lists.

    Raises `ArtefactError` naming the file, the expected and the found digest, and what `read_manifest` raises.
    """
    manifest = read_manifest(folder)
    if not {PIPELINE, TWIN} & manifest.digests.keys() or SCHEMA not in manifest.digests:  # pushed as ONNX: no pipeline
        raise ArtefactError(f"{folder / MANIFEST} lists no digest of {PIPELINE} and {SCHEMA}: train the version again")
    for name, expected in manifest.digests.items():
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
