"""The fast layer of the loop: at every check the champion's output is adapted to what its matured rows say.

No version is trained for it: a job of seconds makes a few kilobytes, and every worker takes them up. Nothing here stops
a check: an adaptation that cannot be made leaves the one before in force, and says so.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from monitoring.feature import ADAPTATION, AT, LABEL, PREDICTED, PROBABILITIES, SCORE, VERSION
from monitoring.schema import FeatureSchema
from training.adaptations import Adaptations, SwitchedOff, UnknownAdaptation
from training.artefact import SCHEMA
from training.counted import ever_answered
from training.experts import Standing
from training.spec import Adapted, JobSpec, read_made
from training.storage import StorageError
from training.subprocess_job import JobCrashed, JobStopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import pandas as pd

    from monitoring.maturity import Maturity
    from training.adaptations import Event
    from training.loop import Loop

logger = logging.getLogger(__name__)


def adapt(loop: Loop, champion: int, matured: pd.DataFrame, labels: Maturity) -> Adapted | None:
    """What came of adapting the champion's output to rows that matured; None when nothing was to be done.

    `labels` is what is known of their delay, `matured` what `checking.matured_rows` says of the rows answered before
    `labels.matured_until`. Raises `LeaseLost`.
    """
    table = Adaptations(loop.engine)
    switch = table.switch()
    if not loop.adapt.enabled or (switch is not None and switch.kind == "off"):
        return None
    events = table.list(champion)
    reverted = next((event for event in events if event.kind == "reverted"), None)
    since, given_up = (0.0, 0) if reverted is None else (reverted.at, reverted.number)
    last = next((event for event in events if event.kind == "made" and event.number > given_up), None)
    schema = FeatureSchema.from_json((loop.registry.fetch(champion) / SCHEMA).read_bytes())
    window = matured[matured[AT] >= since].tail(loop.adapt.most_rows)
    scored_until = 0.0 if last is None else float(last.record.get("until", 0.0))
    fresh = int((window[AT].to_numpy(dtype=np.float64) > scored_until).sum())
    needed = loop.adapt.rest_rows if reverted is not None and last is None else loop.adapt.every_rows
    if len(window) < loop.adapt.min_rows or fresh < needed:
        return None
    folder = loop.work_dir / f"adapt-{champion}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        standing = {} if last is None else dict(last.record.get("standing", {}))
        window, own = _as_answered(window, champion, events)
        answered_by = _answered_by(table, champion, window, given_up, folder)
        spec = _spec(loop, champion, schema, window, own, folder, standing, scored_until, answered_by)
        all_below = 0 if reverted is not None else loop.adapt.most_rows
        total, _ = ever_answered(loop, champion, window[AT].to_numpy()[own], labels.matured_until, all_below)
        taken = loop.registry.manifest(champion).data.snapshot
        spec = msgspec.structs.replace(
            spec,
            waiting=labels.waiting,
            answered_before=max(total - int(own.sum()), 0),
            unseen=_unseen(loop, taken) if taken and reverted is None else None,
        )
        found = _asked(loop, spec, champion)
        if found is not None:
            _put(loop, table, champion, found, Path(spec.out), float(window[AT].iloc[-1]))
        return found
    except OSError as error:  # a full disk
        logger.warning("no adaptation of version %d was made in %s: %s", champion, folder, error)
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unseen(loop: Loop, taken: str) -> str | None:
    """The snapshot that the champion was trained from; None while a storage that has it does not answer."""
    try:
        return str(loop.snapshots.path(taken))
    except StorageError as error:
        logger.warning("the champion is adapted without the rows that it was trained from: %s", error)
        return None


def start(loop: Loop, version: int, spec: JobSpec) -> None:
    """Put the adaptation in force that a new version starts with, when its job left one beside the artefact."""
    made = read_made(Path(spec.out))
    if made is None:
        return
    try:
        Adaptations(loop.engine).add(
            version,
            kind="made",
            who=loop.who,
            why="the version starts with it: made from answers to rows by models that had not learned them",
            now=loop.clock(),
            token=loop.token,
            served=made.served,
            whole=made.whole,
            record={
                "weights": made.whole.weight_of,
                "standing": spec.standing,
                "until": 0.0,
                "slope": made.whole.slope,
            },
        )
    except SwitchedOff:
        logger.info("version %d starts without an adaptation: they are switched off", version)


def standing_of(loop: Loop) -> dict[str, float]:
    """What the champion's experts have been worth, halved: what a version that follows it starts with."""
    champion = loop.registry.live().champion
    events: Sequence[Event] = () if champion is None else Adaptations(loop.engine).list(champion)
    for event in events:
        if event.kind == "reverted":
            break
        if event.kind == "made":
            return Standing(dict(event.record.get("standing", {}))).halved().gains
    return {}


def served_of(window: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[np.float64]:
    """What the record says was answered: probabilities n by classes (NaN where there are none), or n values."""
    if schema.task == "regression":
        numbers: npt.NDArray[np.float64] = window[PREDICTED].to_numpy(dtype=np.float64)
        return numbers
    if schema.task == "binary":
        positive = window[SCORE].to_numpy(dtype=np.float64)
        return np.column_stack([1 - positive, positive])
    found = np.full((len(window), len(schema.classes)), np.nan)
    for at, said in enumerate(window[PROBABILITIES]):
        if said is not None and np.ndim(said) == 1 and len(said) == len(schema.classes):
            found[at] = said
    return found


def _as_answered(
    window: pd.DataFrame, champion: int, events: Sequence[Event]
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """The rows as if this champion had answered all of them, and which it did.

    Those that the versions before answered meet the adaptation that the champion started with: it was made before their
    labels came. Where there is none, they are learnt from and score nobody.
    """
    own = (window[VERSION] == champion).to_numpy()
    first = events[-1] if events else None
    started = first is not None and first.number == 1 and first.kind == "made" and not first.record.get("until")
    numbers = np.where(own, window[ADAPTATION].to_numpy(dtype=np.float64), 1.0 if started else np.nan)
    return window.assign(**{ADAPTATION: numbers}), own


def _answered_by(
    table: Adaptations, champion: int, window: pd.DataFrame, given_up: int, folder: Path
) -> dict[int, str]:
    """A file for each adaptation that answered these rows, but for those before the one that was given up."""
    answered_by: dict[int, str] = {}
    for number in sorted({int(number) for number in window[ADAPTATION].dropna()}):
        path = folder / f"{number}.whole"
        if number > given_up:
            with suppress(UnknownAdaptation):  # pruned: its rows are learnt from, and score nobody
                path.write_bytes(table.whole(champion, number))
                answered_by[number] = str(path)
    return answered_by


def _spec(
    loop: Loop,
    champion: int,
    schema: FeatureSchema,
    window: pd.DataFrame,
    own: npt.NDArray[np.bool_],
    folder: Path,
    standing: dict[str, float],
    scored_until: float,
    answered_by: dict[int, str],
) -> JobSpec:
    window[[*schema.names, AT, LABEL, ADAPTATION]].to_parquet(folder / "rows.parquet", index=False)
    served = served_of(window, schema)
    served[~own] = np.nan
    np.save(folder / "served.npy", served)
    np.save(folder / "own.npy", own)
    return JobSpec(
        kind="adapt",
        out=str(folder / "result"),
        snapshot=str(folder / "rows.parquet"),
        served=str(folder / "served.npy"),
        own=str(folder / "own.npy"),
        schema=msgspec.json.decode(schema.to_json()),
        champion=str(loop.registry.fetch(champion)),
        standing=standing,
        scored_until=scored_until,
        answered_by=answered_by,
        **loop.job_terms(),
    )


def _asked(loop: Loop, spec: JobSpec, champion: int) -> Adapted | None:
    """What came of the job; None when it could not be done, which is logged."""
    try:
        result = loop.run_job(spec)
    except (JobCrashed, JobStopped) as error:
        logger.warning("no adaptation of version %d was made: %s", champion, error)
        return None
    except Exception:  # a fault of ours must not keep the check from being made
        logger.exception("no adaptation of version %d was made", champion)
        return None
    if result.adapted is None:
        logger.warning("no adaptation of version %d was made: %s", champion, result.error)
    return result.adapted


def _put(loop: Loop, table: Adaptations, champion: int, found: Adapted, out: Path, until: float) -> None:
    """The row in the table that says what came of it."""
    given: dict[str, Any] = {"who": loop.who, "now": loop.clock(), "token": loop.token}
    record: dict[str, Any] = {**msgspec.to_builtins(found), "until": until}
    try:
        if found.harm:
            table.add(champion, kind="reverted", why=found.harm, record=record, **given)
        elif (made := read_made(out)) is not None:
            why = f"{found.rows} matured rows; {said(found)}"
            table.add(champion, kind="made", why=why, served=made.served, whole=made.whole, record=record, **given)
    except SwitchedOff:  # a person was faster
        logger.info("the adaptation of version %d is not put in force: they are switched off", champion)


def said(found: Adapted) -> str:
    """How the served output compares with the raw one, in words."""
    turned = f"; it says the opposite of the model (slope {found.slope:.2f})" if found.slope < 0 else ""
    if found.raw_loss is None or found.served_loss is None:
        return f"no row that an adaptation answered has matured yet{turned}"
    return (
        f"on {found.compared} rows answered while adapted the loss was {found.served_loss:.4g} served, "
        f"{found.raw_loss:.4g} raw{turned}"
    )
