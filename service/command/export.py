"""`evergreen export`: the record of this deployment's store as Parquet; no server needs to run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from monitoring.export import export, locked
from monitoring.schema import FeatureSchema
from monitoring.store import open_store
from service.control.deployment import registry
from service.settings import SettingsError
from training.artefact import SCHEMA

if TYPE_CHECKING:
    from service.settings import Settings


class Done(NamedTuple):
    """What was written where, and which version's schema gave the columns."""

    to: str
    rows: int
    labelled: int
    skipped: int
    schema_of: int
    files: tuple[str, ...]


def export_record(
    settings: Settings,
    to: str,
    *,
    since: str = "",
    until: str = "",
    version: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Done:
    """Write the rows answered in [`since`, `until`) below `to`, in the columns of `version` or else the champion's.

    Raises `NoChampion`, `UnknownVersion`, and `SettingsError` for a time that cannot be read.
    """
    engine = open_store(settings.store_url)
    try:
        versions = registry(settings, engine)
        schema_of = versions.champion() if version is None else version
        schema = FeatureSchema.from_json((versions.fetch(schema_of) / SCHEMA).read_bytes())
        with locked(settings.exports_lock, engine):  # waits until an erasure under way is done, on any host
            done = export(
                engine,
                schema,
                to,
                since=moment("--since", since),
                until=moment("--until", until),
                version=version,
                on_rows=on_rows,
            )
    finally:
        engine.dispose()
    return Done(to, done.rows, done.labelled, done.skipped, schema_of, done.files)


def moment(option: str, text: str) -> float | None:
    """Seconds since 1970 UTC of `1764000000`, `2026-11-23` or `2026-11-23T12:00:00+01:00` (UTC without an offset)."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option}: expected 2026-11-23, an ISO 8601 time or seconds, got {text!r}") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
