"""Forgetting by age, as a run: the store, the spool, snapshots, references, reports and exports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from monitoring.erase import blank_spool
from monitoring.export import expire_exports
from monitoring.retention import (
    DAY_S,
    LogHeld,
    RetentionPolicy,
    expire,
    expire_files,
    expire_unmatched,
    is_expired,
)
from training.artefact import REFERENCE
from training.erasure import alone_with_exports, forget_unfinished, forget_unfinished_shared, free_space
from training.homes import expire_homes
from training.lease import LeaseLost
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from training.loop import Loop

Story = dict[str, Any]

logger = logging.getLogger(__name__)


def retain(loop: Loop, policy: RetentionPolicy) -> Story:
    """Delete what the policy does not keep; what was deleted, empty when nothing was.

    Always: rows by age, labels without a prediction, versions beyond the newest and the data only they were trained on.
    With the age of the predictions go snapshots, pages of drift, exported days and the references of versions, but
    nothing that a version with an alias (in service, announced, a former champion) was trained from or is compared
    with. A kind of copy that cannot be reached is named in the story, and tried again at the next turn.
    """
    now = loop.clock()
    cutoffs = policy.cutoffs(now)
    story: Story = {"spool_records": 0}
    if loop.spool_dir is not None and cutoffs:
        records = blank_spool(loop.spool_dir, loop.engine, lambda frame, _: is_expired(frame, cutoffs))
        story["spool_records"] = records
    story["rows"] = expire(loop.engine, cutoffs)
    if policy.unmatched_labels_days:
        before = now // DAY_S * DAY_S - policy.unmatched_labels_days * DAY_S
        story["rows"]["unmatched_labels"] = expire_unmatched(loop.engine, before)
    if any(story["rows"].values()):
        try:
            free_space(loop, story)
        except LogHeld as error:
            story.setdefault("errors", {})["log"] = str(error)
    if policy.homes_days:
        story["gone_homes"] = expire_homes(loop.engine, policy.homes_days, loop.token)
    story["deleted_versions"] = _delete_versions(loop, policy.versions)
    if policy.snapshots_days:
        story["loose_snapshots"] = _loose_snapshots(loop, now - policy.snapshots_days * DAY_S)
    before = cutoffs.get("predictions", 0.0)
    if before:
        forget_unfinished(loop)
        forget_unfinished_shared(loop)
        for name, work in _COPIES.items():
            try:
                story[name] = work(loop, before)
            except LeaseLost:
                raise
            except Exception as error:  # of a file system far away, say: the other copies, and the run, come first
                logger.exception("retention of the %s failed; the next turn tries again", name)
                story.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
    if not any([*story["rows"].values(), *(value for name, value in story.items() if name != "rows")]):
        return {}
    return {**story, "older_than": cutoffs}


def _delete_versions(loop: Loop, keep: int) -> list[int]:
    """The versions deleted: all but the newest `keep` and those that an alias names, the former champions included."""
    needed = loop.registry.named()
    old = [v.version for v in loop.registry.list()[keep:] if v.version not in needed]
    return [version for version in sorted(old) if loop.registry.delete(version, loop.token)]


def _loose_snapshots(loop: Loop, before: float) -> int:
    named = {version.manifest.data.snapshot or "" for version in loop.registry.list()}
    return loop.snapshots.expire(before, named)


def _snapshots(loop: Loop, before: float) -> int:
    needed = loop.registry.named()
    named = {v.manifest.data.snapshot or "" for v in loop.registry.list() if v.version in needed}
    return loop.snapshots.expire(before, named)


def _reports(loop: Loop, before: float) -> int:
    return expire_files(loop.reports_dir, "*.html", before) if loop.reports_dir is not None else 0


def _references(loop: Loop, before: float) -> list[int]:
    """The versions whose reference has no rows any more."""
    emptied, needed = [], loop.registry.named()
    for version in loop.registry.list():
        if version.version in needed or version.created_at >= before or version.manifest.expired:
            continue
        with suppress(UnknownVersion):  # its artefact is on another host
            reference = loop.registry.fetch(version.version) / REFERENCE
            manifest = version.manifest.changed(reproducible=False, expired=before)
            loop.registry.amend(version.version, manifest, loop.token, _emptied(reference))
            emptied.append(version.version)
    return emptied


def _exports(loop: Loop, before: float) -> int:
    if not loop.exports:
        return 0
    with alone_with_exports(loop):
        return expire_exports(loop.exports, before)


def _emptied(reference: Path) -> Any:
    """The reference's columns without its rows; None when there is none."""
    import pandas as pd

    return pd.read_parquet(reference).head(0) if reference.is_file() else None


_COPIES: Final[dict[str, Callable[[Loop, float], Any]]] = {
    "snapshots": _snapshots,
    "reports": _reports,
    "versions": _references,
    "exports": _exports,
}
