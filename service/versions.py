"""What is told of a version, by the management API and by the command alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from training.lineage import lineage
from training.marks import Marks, marks

if TYPE_CHECKING:
    import sqlalchemy as sa

    from training.registry import Registry, Version


def all_versions(engine: sa.Engine, registry: Registry) -> dict[str, Any]:
    """All versions, newest first, and which of them runs under which alias."""
    live, said = registry.live(), marks(engine)
    return {
        "model": registry.name,
        "champion": live.champion,
        "previous": live.previous,
        "announced": live.announced,
        "models": [_brief(version, said.get(version.version, Marks())) for version in registry.list()],
    }


def one_version(engine: sa.Engine, registry: Registry, version: int) -> dict[str, Any]:
    """One version with its manifest, its lineage, and what people said of it. Raises `UnknownVersion`."""
    found, said = registry.get(version), marks(engine).get(version, Marks())
    return {
        **_brief(found, said),
        "notes": msgspec.to_builtins(said.notes),
        "lineage": msgspec.to_builtins(lineage(engine, registry, version)),
        "manifest": found.manifest.document,
    }


def _brief(version: Version, said: Marks) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "version": version.version,
        "created_at": version.created_at,
        "origin": version.origin,
        "estimator": manifest.estimator,
        "quality": msgspec.to_builtins(manifest.quality),
        "engine": manifest.engine,
        "reproducible": manifest.reproducible,
        "snapshot": manifest.data.snapshot,
        "tags": list(said.tags),
    }
