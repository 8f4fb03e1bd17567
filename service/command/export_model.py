"""`evergreen models export`: a version's files, as they were registered; no server needs to run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from monitoring.store import open_store
from service.control.deployment import registry
from service.settings import SettingsError
from training.artefact import PIPELINE, SCHEMA, TWIN, verify

if TYPE_CHECKING:
    from service.settings import Settings


class Exported(NamedTuple):
    """Which files of the version were written where, and why there is no ONNX twin ("" when there is one)."""

    version: int
    to: str
    files: tuple[str, ...]
    no_twin: str


def export_model(settings: Settings, version: int, to: Path) -> Exported:
    """Copy the version's pipeline (skops), its ONNX twin when it has one, and its schema to the folder `to`.

    The copies have the digests of the manifest. Raises `UnknownVersion`, `ArtefactError` for a version whose files were
    changed, and `SettingsError` for a folder that has such files already.
    """
    engine = open_store(settings.store_url)
    try:
        versions = registry(settings, engine)
        versions.get(version)
        folder = versions.fetch(version)
    finally:
        engine.dispose()
    manifest = verify(folder)
    files = tuple(name for name in (PIPELINE, TWIN, SCHEMA) if name in manifest.digests)
    if there := [name for name in files if (to / name).exists()]:
        raise SettingsError(f"--to: {to} has {', '.join(there)} already: give another folder, or delete them first")
    to.mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copyfile(folder / name, to / name)
    reason = manifest.parity.reason if manifest.parity else "no reason in the manifest"
    return Exported(version, str(to), files, "" if TWIN in files else reason)
