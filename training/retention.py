"""Forgetting by age, as a run: the store, the spool, snapshots, references, reports and exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from monitoring.erase import blank_spool
from monitoring.export import expire_exports
from monitoring.retention import RetentionPolicy, expire, expire_files, is_expired
from monitoring.store import aliases
from training.artefact import REFERENCE
from training.erasure import snapshot_of
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from training.cycle import Loop

Story = dict[str, Any]


def retain(loop: Loop, policy: RetentionPolicy) -> Story:
    """Delete what is older than the policy keeps; what was deleted, empty when nothing was.

    With the age of the predictions go snapshots, pages of drift, exported days and the references of versions, but
    nothing that a version with an alias (in service, announced, a former champion) was trained from or is compared
    with. Deleted values can be read in the database's file until it is compacted.
    """
    now = loop.clock()
    cutoffs = policy.cutoffs(now)
    if not cutoffs:
        return {}
    story: Story = {"spool_records": 0}
    if loop.spool_dir is not None:
        records = blank_spool(loop.spool_dir, loop.engine, lambda frame, _: is_expired(frame, cutoffs))
        story["spool_records"] = records
    story["rows"] = expire(loop.engine, cutoffs)
    before = cutoffs.get("predictions")
    if before is not None:
        story |= _expire_copies(loop, before)
    if not any(_counts(story)):
        return {}
    return {**story, "older_than": cutoffs}


def _counts(story: Mapping[str, Any]) -> list[Any]:
    return [*story["rows"].values(), *(value for name, value in story.items() if name != "rows")]


def _expire_copies(loop: Loop, before: float) -> Story:
    needed = _in_use(loop)
    snapshots = {snapshot_of(v.manifest) for v in loop.registry.list() if v.version in needed}
    story: Story = {
        "snapshots": expire_files(loop.snapshots_dir, "*.parquet", before, keep=snapshots),
        "reports": expire_files(loop.reports_dir, "*.html", before) if loop.reports_dir is not None else 0,
        "exports": expire_exports(loop.exports, before) if loop.exports else 0,
        "versions": [],
    }
    for version in loop.registry.list():
        if version.version in needed or version.created_at >= before or version.manifest.get("expired"):
            continue
        try:
            reference = loop.registry.path(version.version) / REFERENCE
        except UnknownVersion:  # its artefact is on another host
            continue
        manifest = {**version.manifest, "reproducible": False, "expired": before}
        loop.registry.amend(version.version, manifest, loop.token, _emptied(reference))
        story["versions"].append(version.version)
    return story


def _emptied(reference: Path) -> Any:
    """The reference's columns without its rows; None when there is none."""
    import pandas as pd

    return pd.read_parquet(reference).head(0) if reference.is_file() else None


def _in_use(loop: Loop) -> set[int]:
    """Every version that has an alias, the former champions included."""
    named = sa.select(aliases.c.version).where(aliases.c.name == loop.registry.name, aliases.c.alias != "counter")
    with loop.engine.connect() as connection:
        return set(connection.scalars(named))
