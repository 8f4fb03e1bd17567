"""What a version's artefact and manifest say, as the page needs it; kept, for a version hardly changes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from monitoring.schema import FeatureSchema
from training.artefact import SCHEMA
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from pathlib import Path

    from monitoring.feature import Task
    from service.serving.management.deployment import Managed


def schema_of(here: Managed, version: int) -> FeatureSchema | None:
    """The schema of a version, None when its artefact is not on this host."""
    try:
        return _read(here.registry.path(version) / SCHEMA)
    except UnknownVersion:
        return None


def task_of(here: Managed) -> Task | None:
    """What the champion answers, None while there is none."""
    schema = champion_schema(here)
    return None if schema is None else schema.task


def champion_schema(here: Managed) -> FeatureSchema | None:
    """None while there is no champion, or none on this host."""
    champion = here.registry.live().champion
    return None if champion is None else schema_of(here, champion)


@lru_cache(maxsize=16)
def _read(path: Path) -> FeatureSchema:
    return FeatureSchema.from_json(path.read_bytes())
