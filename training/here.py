"""What each host forgets by itself: its part of an erasure that another host carries out, and what grew old on it.

The holder of the lease erases what is shared (the store, the artefacts, exports at a URL) and its own home; the other
homes clear their spool, their copies of versions and snapshots, their pages and their own exports. None of it needs the
lease.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from monitoring.erase import Subject, blank_spool, entry_test, erase_exports, find
from monitoring.errors import CannotGoOn
from monitoring.export import expire_exports
from monitoring.files import UNFINISHED
from monitoring.retention import RetentionPolicy, expire_files, is_expired
from training.erasure import alone_with_exports, clock_of, delete_reports, wait_for_drain
from training.homes import expected
from training.parts import asked_of, end
from training.snapshots import Snapshots

if TYPE_CHECKING:
    from training.loop import Loop
    from training.runs import Run

Story = dict[str, Any]

logger = logging.getLogger(__name__)

_LOCAL: Final = ("file://", "local://")


def work_off_parts(loop: Loop, said: set[str]) -> list[int]:
    """Ids of the parts that were done now. What keeps one from it is logged once (`said`); it is tried again."""
    done = []
    for part in asked_of(loop):
        try:
            erase_here(loop, part)
            done.append(part.id)
        except CannotGoOn as error:
            words = f"this host's part of erasure {part.record.payload.of} waits: {error}"
            if words not in said:
                logger.warning("%s", words)
            said.add(words)
    return done


def erase_here(loop: Loop, part: Run) -> Story:
    """What went on this home, as its run says it, too.

    Rows of the subject that came into the store after it was cleared (this home was away) are erased by a run of their
    own, which the holder of the lease finds queued. Raises `NotDrained`, `StorageError`, `ExportsBusy`; the part stays
    queued then.
    """
    asked = part.record.payload
    ids = asked.ids if isinstance(asked.ids, tuple) else ()
    subject = Subject(ids, asked.feature, asked.value, asked.hidden)
    story: Story = {}
    wait_for_drain(loop, (asked.asked_at or 0.0) + clock_of(loop))
    found = find(loop.engine, subject, asked.until)
    if found.rows:
        whom = {"ids": sorted(found.ids), "asked_at": asked.asked_at}
        why = f"came into the store after erasure {asked.of}"
        story["late_rows"] = len(found.rows)
        story["erased_by"] = loop.runs.queue(
            "erase", trigger=part.trigger, who=part.who, why=why, now=loop.clock(), payload=whom
        )
    for folder in (loop.snapshots_dir, loop.reports_dir):
        for left in folder.glob(f"*{UNFINISHED}") if folder is not None else ():
            left.unlink(missing_ok=True)
    story["followed_versions"] = len(loop.registry.follow())
    story["snapshots"] = sum([loop.snapshots.forget(digest) for digest in asked.snapshots])
    story["reports"] = delete_reports(loop)
    if _has_exports(loop):
        with alone_with_exports(loop):
            story["exports"] = erase_exports(loop.exports, subject, found.ids, asked.until)
    if loop.spool_dir is not None:
        test = entry_test(subject, found.ids, asked.until)
        story["spool_records"] = blank_spool(loop.spool_dir, loop.engine, test)
    end(loop, part, story)
    return story


def retain_here(loop: Loop, policy: RetentionPolicy) -> Story:
    """Delete from this home what the policy does not keep; what was deleted, empty when nothing was.

    On the home of whoever holds the lease, `training/retention.py` does it together with all that is shared. Raises
    `StorageError` and `ExportsBusy`.
    """
    if any(home.leads for home in expected(loop.engine) if home.home == loop.home):
        return {}
    cutoffs = policy.cutoffs(loop.clock())
    story: Story = {"followed_versions": len(loop.registry.follow())}
    if loop.spool_dir is not None and cutoffs:
        story["spool_records"] = blank_spool(loop.spool_dir, loop.engine, lambda frame, _: is_expired(frame, cutoffs))
    if before := cutoffs.get("predictions", 0.0):
        named = {version.manifest.data.snapshot or "" for version in loop.registry.list()}
        story["snapshots"] = Snapshots(loop.snapshots_dir).expire(before, named)
        if loop.reports_dir is not None:
            story["reports"] = expire_files(loop.reports_dir, "*.html", before)
        if _has_exports(loop):
            with alone_with_exports(loop):
                story["exports"] = expire_exports(loop.exports, before)
    if not any(story.values()):
        return {}
    why = "older than [retention] keeps, on this host"
    record = {**story, "payload": {"home": loop.home}}
    loop.runs.say("retention_part", who=loop.who, why=why, outcome="deleted", now=loop.clock(), record=record)
    return story


def _has_exports(loop: Loop) -> bool:
    """Whether exports lie in a folder: each host may have its own under that name."""
    return bool(loop.exports) and ("://" not in loop.exports or loop.exports.startswith(_LOCAL))
