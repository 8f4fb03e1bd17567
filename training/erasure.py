"""Forgetting on demand, as a run: the store, the spool, snapshots, references, reports and exports.

An erasure goes from the copies to the source, so that one that broke off can be asked for again: what it needs to know
(which rows are meant) is deleted last. Rows that trained a version have no prediction id in a snapshot: there they are
found by the moment of the answer and all feature values, in a reference by all feature values, and by the subject
feature's value in both. Fitted models stay as they are; the version is marked `"reproducible": false`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from monitoring.erase import (
    Found,
    Subject,
    blank_spool,
    canonical_rows,
    canonical_values,
    entry_test,
    erase_exports,
    erase_rows,
    find,
    undrained,
)
from monitoring.errors import CannotGoOn
from monitoring.export import locked
from monitoring.feature import AT
from monitoring.files import UNFINISHED
from monitoring.fits import feature_number
from monitoring.retention import LogHeld, compact
from monitoring.schema import FeatureSchema
from training.artefact import REFERENCE, SCHEMA
from training.homes import expected
from training.parts import ask_others, done_by, waits_for
from training.registry import UnknownVersion

if TYPE_CHECKING:
    import pandas as pd

    from training.loop import Loop
    from training.registry import Version
    from training.runs import Run
    from training.snapshots import Snapshots

Story = dict[str, Any]

logger = logging.getLogger(__name__)

DRAIN_TRIES: Final = 240
DRAIN_WAIT_S: Final = 0.25
LONG_S: Final = 3.0
"""SQLite lets nobody write while it is rewritten, not even the lease: after so long its renewal is waited for."""


class NotDrained(CannotGoOn, RuntimeError):
    """Raised when rows recorded before an erasure was asked for do not reach the store."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            f"{waiting} records still wait in the spool, so nothing was erased: "
            "let the drain catch up (`evergreen status`), then ask again"
        )


def erase(loop: Loop, run: Run, story: Story) -> None:
    """Erase what the run's payload names (`ids`, or `feature` and `value`) up to the moment it was asked for.

    That is all that is shared, and this home; the others are asked for their part, and `story["waits_for"]` names
    those that have not done it. It also gets the number of rows deleted in each place, and the versions that are
    marked. Afterwards the run does not say any more who was meant. Raises `NotDrained`.
    """
    asked = run.record.payload
    ids = asked.ids if isinstance(asked.ids, tuple) else ()
    subject = Subject(ids, asked.feature, asked.value, asked.hidden)
    story["payload"] = {"ids": len(subject.ids)} if subject.ids else {"feature": subject.feature, "value": "(erased)"}
    asked_at = run.created_at if asked.asked_at is None else asked.asked_at
    until = asked_at + max([0.0, *(home.ahead_s for home in expected(loop.engine))])  # rows have their host's clock
    wait_for_drain(loop, asked_at + clock_of(loop))
    forget_unfinished(loop)
    forget_unfinished_shared(loop)
    with alone_with_exports(loop):  # else an export under way would bring back what it has read already
        found = find(loop.engine, subject, until)
        story["ids"] = len(found.ids)
        story["versions"] = []
        for version in loop.registry.list():
            _erase_from_version(loop, run, version, subject, found, story)
        gone = _erase_loose_snapshots(loop, subject, found, story)
        story["reports"] = delete_reports(loop)
        if loop.exports:
            story["exports"] = erase_exports(loop.exports, subject, found.ids, until)
        if loop.spool_dir is not None:
            test = entry_test(subject, found.ids, until)
            story["spool_records"] = blank_spool(loop.spool_dir, loop.engine, test)
        ask_others(loop, run, subject, found.ids, asked_at=asked_at, until=until, snapshots=gone)
        loop.runs.redact(run.id, story["payload"], loop.token)
        story["rows"] = erase_rows(loop.engine, subject, found.ids, until)
    free_space(loop, story)
    story["waits_for"] = waits_for(loop, run.id)


def over(loop: Loop) -> list[tuple[Run, Story]]:
    """The erasures that waited for other homes and need not any more, with what their records say then.

    The others name in theirs whom they wait for. Raises `LeaseLost`.
    """
    ended = []
    for run in loop.runs.list(kind="erase", state="waiting", limit=1000):
        names = waits_for(loop, run.id)
        if not names:
            story: Story = {"waits_for": (), "homes": done_by(loop, run.id)}
            try:
                free_space(loop, story)  # the parts said who was meant
            except LogHeld as error:
                story["errors"] = {"log": str(error)}
            ended.append((run, story))
        elif names != run.record.waits_for:
            loop.runs.wait(run.id, {"waits_for": names}, loop.token)
    return ended


def clock_of(loop: Loop) -> float:
    """How far this home's clock is before the database's, in seconds."""
    return next((home.ahead_s for home in expected(loop.engine) if home.home == loop.home), 0.0)


def free_space(loop: Loop, story: Story) -> None:
    """`compact` the store, then sleep for as long as the renewal of the lease needs that had to wait meanwhile.

    Whom it had to wait for is logged, and stands in the story. Raises `LogHeld`.
    """

    def wait(who: str) -> None:
        if story.get("waited_for") != who:
            logger.warning("to clear out what was deleted, the SQLite log must be free: waiting for %s", who)
        story["waited_for"] = who

    began = loop.clock()
    compact(loop.engine, sleep=loop.sleep, on_wait=wait)
    if loop.clock() - began > LONG_S:
        loop.sleep(2 * LONG_S)


def forget_unfinished(loop: Loop) -> None:
    """Complete or delete what interrupted writers left unfinished on this host: it holds rows that nobody looks for."""
    unfinished = f"*{UNFINISHED}"
    for folder, pattern in (
        (loop.snapshots_dir, unfinished),
        (loop.reports_dir, unfinished),
        (loop.reports_dir, "*.tmp"),  # of 0.2.0 and before
    ):
        for left in folder.glob(pattern) if folder is not None else ():
            left.unlink(missing_ok=True)
    loop.registry.settle()


def forget_unfinished_shared(loop: Loop) -> None:
    """The same in what replicas share. Raises `StorageError` and `LeaseLost`."""
    loop.registry.settle_shared(loop.token)


@contextmanager
def alone_with_exports(loop: Loop) -> Iterator[None]:
    """While nobody exports, on no host. Raises `ExportsBusy`."""
    if loop.exports_lock is None:
        yield
        return
    with locked(loop.exports_lock, loop.engine, sleep=loop.sleep):
        yield


def wait_for_drain(loop: Loop, until: float) -> None:
    """Wait until what this host recorded up to `until`, by its own clock, is in the store. Raises `NotDrained`."""
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
        folder = loop.registry.fetch(version.version)
    except UnknownVersion:  # its artefact is on another host
        story.setdefault("not_here", []).append(version.version)
        return
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    digest = version.manifest.data.snapshot
    changes: Story = {"reproducible": False, "erasure": run.id}
    gone: Story = {}
    moved = story.setdefault("_moved", {})
    if digest and digest not in moved:
        moved[digest] = _erase_from_snapshot(loop.snapshots, digest, schema, subject, found)
    if digest and moved[digest] is not None:
        new, rows = moved[digest]
        changes["data"] = {"snapshot": new}
        gone["snapshot_rows"] = rows
    reference, rows = _without_meant(folder / REFERENCE, schema, subject, found)
    if rows:
        gone["reference_rows"] = rows
    learnt = canonical_values(subject, schema) & {c for f in schema.features for c in f.categories}
    if learnt:
        gone["still_a_category"] = "the model knows the value as a category: retrain, then delete this version's folder"
    if not gone:
        return
    manifest = version.manifest.changed(**changes)
    loop.registry.amend(version.version, manifest, loop.token, reference if rows else None)
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


def _meant_by_columns(frame: pd.DataFrame, subject: Subject, found: Found) -> Any:
    """Which rows of a snapshot are meant, without its schema: a boolean array.

    Those with the subject's value, and those answered at the moment of a row that is meant whose columns all agree.
    """
    import numpy as np

    meant = np.zeros(len(frame), dtype=bool)
    if subject.feature in frame.columns:
        column = frame[subject.feature].tolist()
        meant |= np.array([any(_agree(there, value) for value in subject.values) for there in column], dtype=bool)
    by_moment: dict[float, list[Mapping[str, Any]]] = {}
    for row in found.rows:
        by_moment.setdefault(row.at, []).append(row.features)
    for at in np.flatnonzero(frame[AT].isin(list(by_moment)).to_numpy()).tolist():
        there = frame.iloc[at]
        meant[at] |= any(
            all(
                _agree(there[name], value) or (isinstance(value, str) and not isinstance(there[name], str | None))
                for name, value in features.items()  # a moment in time is sent as a text and stored as a number
                if name in frame.columns
            )
            for features in by_moment[float(there[AT])]
        )
    return meant


def _agree(stored: Any, sent: Any) -> bool:
    """Whether a canonical value may be what was sent: numbers and truth values by float32, texts as they are."""
    import numpy as np

    if sent is None or stored is None:
        return sent is None and (stored is None or bool(stored != stored))
    if isinstance(sent, bool | int | float):
        if not (isinstance(sent, bool) or feature_number(sent)):
            return False
        return isinstance(stored, float | int | np.floating) and bool(np.float32(stored) == np.float32(sent))
    return bool(stored == sent)


def _erase_from_snapshot(
    snapshots: Snapshots, digest: str, schema: FeatureSchema | None, subject: Subject, found: Found
) -> tuple[str | None, int] | None:
    """(digest of the snapshot that takes its place, rows that went); None when none is meant.

    The old file stays until every manifest names the new one.
    """
    import pandas as pd

    path = snapshots.path(digest)
    if not path.is_file():
        return None
    frame = pd.read_parquet(path)
    if schema is not None and set(schema.names) <= set(frame.columns):
        meant = _meant(frame, schema, subject, found, timed=True)
    else:  # of another schema, which is gone
        meant = _meant_by_columns(frame, subject, found)
    if not meant.any():
        return None
    left = frame[~meant].reset_index(drop=True)
    if not len(left):
        return None, int(meant.sum())
    return snapshots.replace(digest, left).digest, int(meant.sum())


def _without_meant(
    path: Path, schema: FeatureSchema, subject: Subject, found: Found
) -> tuple[pd.DataFrame | None, int]:
    """(the reference without the rows that are meant, how many those are)."""
    import pandas as pd

    if not path.is_file():
        return None, 0
    frame = pd.read_parquet(path)
    meant = _meant(frame, schema, subject, found, timed=False)
    return frame[~meant], int(meant.sum())


def _erase_loose_snapshots(loop: Loop, subject: Subject, found: Found, story: Story) -> list[str]:
    """Delete the snapshots that were replaced, and look through those that no version names (refused candidates').

    The digests of those that are gone.
    """
    moved: dict[str, tuple[str | None, int] | None] = story.pop("_moved", {})
    rows = sum(went[1] for went in moved.values() if went is not None)
    deleted = [digest for digest, went in moved.items() if went is not None]
    for digest in deleted:
        loop.snapshots.forget(digest)
    live = loop.registry.live().champion
    schema = None
    with suppress(UnknownVersion):
        schema = (
            FeatureSchema.from_json((loop.registry.fetch(live) / SCHEMA).read_bytes()) if live is not None else None
        )
    gone = set(story.get("not_here", ()))
    named = {version.manifest.data.snapshot for version in loop.registry.list() if version.version not in gone}
    for digest in loop.snapshots.digests():
        if digest in named:
            continue
        went = _erase_from_snapshot(loop.snapshots, digest, schema, subject, found)
        if went is not None:
            rows += went[1]
            loop.snapshots.forget(digest)
            deleted.append(digest)
    story["snapshot_rows"] = rows
    return deleted


def delete_reports(loop: Loop) -> int:
    """How many pages of drift were deleted: all, as they show values. The next check with drift makes a new one."""
    if loop.reports_dir is None:
        return 0
    gone = 0
    for page in loop.reports_dir.glob("*.html"):
        with suppress(FileNotFoundError):
            page.unlink()
            gone += 1
    return gone
