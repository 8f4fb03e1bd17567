"""Forgetting on demand and by age, as runs: the store, the spool, snapshots, references, reports and exports.

An erasure goes from the copies to the source, so that one that broke off can be asked for again: what it needs to know
(which rows are meant) is deleted last. Rows that trained a version have no prediction id in a snapshot: there they are
found by the moment of the answer and all feature values, in a reference by all feature values, and by the subject
feature's value in both. Fitted models stay as they are; the version is marked `"reproducible": false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from monitoring.erase import (
    Found,
    Subject,
    blank_spool,
    canonical_rows,
    canonical_values,
    erase_exports,
    erase_rows,
    find,
    frame_test,
    undrained,
)
from monitoring.retention import RetentionPolicy, compact, expire, expire_snapshots, is_expired
from monitoring.schema import FeatureSchema
from monitoring.store import aliases
from training.artefact import REFERENCE, SCHEMA, file_digest
from training.data import AT, snapshot
from training.registry import UnknownVersion

if TYPE_CHECKING:
    import pandas as pd

    from training.cycle import Loop
    from training.registry import Version
    from training.runs import Run

Story = dict[str, Any]

DRAIN_TRIES: Final = 240
DRAIN_WAIT_S: Final = 0.25
LONG_S: Final = 3.0
"""SQLite lets nobody write while it is rewritten, not even the lease: after so long its renewal is waited for."""


class NotDrained(RuntimeError):
    """Raised when rows recorded before an erasure was asked for do not reach the store."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            f"{waiting} records still wait in the spool, so nothing was erased: "
            "let the drain catch up (`evergreen status`), then ask again"
        )


def erase(loop: Loop, run: Run, story: Story) -> None:
    """Erase what the run's payload names (`ids`, or `feature` and `value`) up to the moment it was asked for.

    `story` is told how many rows went where and which versions are marked. Afterwards the run no longer says who was
    meant. Raises `NotDrained`.
    """
    payload = run.payload
    subject = Subject(tuple(payload.get("ids", ())), payload.get("feature", ""), payload.get("value"))
    story["payload"] = {"ids": len(subject.ids)} if subject.ids else {"feature": subject.feature, "value": "(erased)"}
    until = run.created_at
    _wait_for_drain(loop, until)
    found = find(loop.engine, subject, until)
    story["ids"] = len(found.ids)
    story["versions"] = []
    for version in loop.registry.list():
        _erase_from_version(loop, run, version, subject, found, story)
    _erase_loose_snapshots(loop, subject, found, story)
    story["reports"] = _delete_reports(loop)
    if loop.exports:
        story["exports"] = erase_exports(loop.exports, subject, found.ids, until)
    if loop.spool_dir is not None:
        test = frame_test(subject, found.ids, until)
        story["spool_records"] = blank_spool(loop.spool_dir, loop.engine, test)
    story["rows"] = erase_rows(loop.engine, subject, found.ids, until)
    loop.runs.redact(run.id, story["payload"], loop.token)
    began = loop.clock()
    compact(loop.engine)
    if loop.clock() - began > LONG_S:
        loop.sleep(2 * LONG_S)


def retain(loop: Loop, policy: RetentionPolicy) -> Story:
    """Delete what is older than the policy keeps; what was deleted, empty when nothing was.

    Snapshots go with the predictions' age, but none that a version with an alias was trained from.
    """
    now = loop.clock()
    cutoffs = policy.cutoffs(now)
    blanked = 0
    if loop.spool_dir is not None and cutoffs:
        blanked = blank_spool(loop.spool_dir, loop.engine, lambda frame, _: is_expired(frame, cutoffs))
    rows = expire(loop.engine, cutoffs)
    snapshots = 0
    if "predictions" in cutoffs:
        snapshots = expire_snapshots(loop.snapshots_dir, _needed_snapshots(loop), cutoffs["predictions"])
    if not (any(rows.values()) or snapshots):
        return {}
    if any(rows.values()):
        compact(loop.engine)
    return {"rows": rows, "spool_records": blanked, "snapshots": snapshots, "older_than": cutoffs}


def _needed_snapshots(loop: Loop) -> set[str]:
    """Digests of the snapshots of every version that has an alias, the former champions included."""
    named = sa.select(aliases.c.version).where(aliases.c.name == loop.registry.name, aliases.c.alias != "counter")
    with loop.engine.connect() as connection:
        versions = set(connection.scalars(named))
    return {_snapshot_of(v.manifest) for v in loop.registry.list() if v.version in versions}


def _snapshot_of(manifest: Mapping[str, Any]) -> str:
    return str((manifest.get("data") or {}).get("snapshot") or "")


def _wait_for_drain(loop: Loop, until: float) -> None:
    if loop.spool_dir is None:
        return
    for _ in range(DRAIN_TRIES):
        waiting = undrained(loop.spool_dir, loop.engine, until)
        if not waiting:
            return
        loop.sleep(DRAIN_WAIT_S)
    raise NotDrained(waiting)


def _erase_from_version(loop: Loop, run: Run, version: Version, subject: Subject, found: Found, story: Story) -> None:
    try:
        folder = loop.registry.path(version.version)
    except UnknownVersion:  # its artefact is on another host
        story.setdefault("not_here", []).append(version.version)
        return
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    manifest = dict(version.manifest)
    digest = _snapshot_of(manifest)
    gone: Story = {}
    moved = story.setdefault("_moved", {})
    if digest and digest not in moved:
        moved[digest] = _erase_from_snapshot(loop.snapshots_dir / f"{digest}.parquet", schema, subject, found)
    if digest and moved[digest] is not None:
        new, rows = moved[digest]
        manifest["data"] = {**manifest["data"], "snapshot": new}
        gone["snapshot_rows"] = rows
    rows = _erase_from_reference(folder / REFERENCE, schema, subject, found)
    if rows:
        gone["reference_rows"] = rows
        manifest["digests"] = {**manifest["digests"], REFERENCE: file_digest(folder / REFERENCE)}
    learnt = canonical_values(subject, schema) & {c for f in schema.features for c in f.categories}
    if learnt:
        gone["still_a_category"] = "the model knows the value as a category: retrain, then delete this version's folder"
    if not gone:
        return
    manifest |= {"reproducible": False, "erasure": run.id}
    loop.registry.amend(version.version, manifest, loop.token)
    story["versions"].append({"version": version.version, **gone})


def _meant(frame: pd.DataFrame, schema: FeatureSchema, subject: Subject, found: Found, *, timed: bool) -> Any:
    """Which rows of a canonical frame are meant: a boolean array."""
    import numpy as np
    import pandas as pd

    def prints(features: pd.DataFrame) -> Any:
        return pd.util.hash_pandas_object(features[list(schema.names)], index=False).to_numpy()

    meant = np.zeros(len(frame), dtype=bool)
    times, rows = canonical_rows(found.rows, schema)
    if len(rows):
        hashes = prints(schema.canonical(frame))
        if timed:
            known = set(zip(times, prints(rows).tolist(), strict=True))
            maybe = np.flatnonzero(np.isin(frame[AT].to_numpy(), times))
            meant[[at for at in maybe.tolist() if (float(frame[AT].iloc[at]), int(hashes[at])) in known]] = True
        else:
            meant |= np.isin(hashes, prints(rows))
    values = canonical_values(subject, schema)
    if values:
        meant |= np.array([value in values for value in frame[subject.feature].tolist()], dtype=bool)
    return meant


def _erase_from_snapshot(
    path: Path, schema: FeatureSchema, subject: Subject, found: Found
) -> tuple[str | None, int] | None:
    """(digest of the snapshot that takes its place, rows that went); None when none is meant.

    The old file stays until every manifest names the new one.
    """
    import pandas as pd

    if not path.is_file():
        return None
    frame = pd.read_parquet(path)
    if not set(schema.names) <= set(frame.columns):
        return None
    meant = _meant(frame, schema, subject, found, timed=True)
    if not meant.any():
        return None
    left = frame[~meant].reset_index(drop=True)
    return (snapshot(left, path.parent).digest if len(left) else None), int(meant.sum())


def _erase_from_reference(path: Path, schema: FeatureSchema, subject: Subject, found: Found) -> int:
    import pandas as pd

    if not path.is_file():
        return 0
    frame = pd.read_parquet(path)
    meant = _meant(frame, schema, subject, found, timed=False)
    if meant.any():
        beside = path.with_name(f".{path.name}")
        frame[~meant].to_parquet(beside, index=False)
        beside.replace(path)
    return int(meant.sum())


def _erase_loose_snapshots(loop: Loop, subject: Subject, found: Found, story: Story) -> None:
    """Delete the snapshots that were replaced, and look through those that no version names (refused candidates')."""
    moved: dict[str, tuple[str | None, int] | None] = story.pop("_moved", {})
    rows = sum(went[1] for went in moved.values() if went is not None)
    for digest, went in moved.items():
        if went is not None:
            (loop.snapshots_dir / f"{digest}.parquet").unlink(missing_ok=True)
    live = loop.registry.live().champion
    if live is not None:
        named = {_snapshot_of(version.manifest) for version in loop.registry.list()}
        schema = FeatureSchema.from_json((loop.registry.path(live) / SCHEMA).read_bytes())
        for path in sorted(loop.snapshots_dir.glob("*.parquet")):
            if path.stem in named:
                continue
            went = _erase_from_snapshot(path, schema, subject, found)
            if went is not None:
                rows += went[1]
                path.unlink()
    story["snapshot_rows"] = rows


def _delete_reports(loop: Loop) -> int:
    """Pages of drift show values: all of them go, the next check that finds drift makes a new one."""
    if loop.reports_dir is None:
        return 0
    gone = 0
    for page in loop.reports_dir.glob("*.html"):
        with suppress(FileNotFoundError):
            page.unlink()
            gone += 1
    return gone
