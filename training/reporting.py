"""Evidently's page of any check, made again from what is there: the rows it looked at, and its version's reference.

Every replica makes its own: nothing is written to the store, no lease is needed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pandas as pd

from monitoring.drift import DriftReport
from monitoring.errors import EvergreenError
from monitoring.schema import FeatureSchema
from monitoring.window import read_window
from training.artefact import REFERENCE, SCHEMA
from training.checking import comparable
from training.registry import UnknownVersion
from training.spec import DRAWN, JobError, JobSpec

if TYPE_CHECKING:
    from training.loop import Loop
    from training.runs import Check, Run

_RUNS: Final = 1000
"""So many of the newest retentions and erasures are looked through for the one that deleted a check's rows."""


class NoReport(EvergreenError):
    """Raised when a check has no page: it compared nothing, or its version is not on this host."""


class RowsGone(NoReport):
    """Raised when what a check looked at has been deleted since."""


def report(loop: Loop, check: Check, keep: Callable[[Path], None]) -> None:
    """Hand the page of a check to `keep`, a file that is gone afterwards; a job in a process of its own draws it.

    The rows are those the version had answered when the check's newest row was; labels and erasures since then count.
    Raises `NoReport`, `RowsGone`, and what `loop.run_job` raises.
    """
    drift = _compared(check)
    schema, reference = _reference(loop, check, drift)
    window = _window(loop, check, drift, schema)
    folder = loop.work_dir / f"report-{check.id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        answers = [name for name in ("_prediction", "_score") if name in reference]
        reference[[*schema.names, *answers]].to_parquet(folder / "reference.parquet", index=False)
        window[[*schema.names, *answers]].to_parquet(folder / "window.parquet", index=False)
        spec = JobSpec(
            kind="report",
            out=str(folder / "out"),
            snapshot=str(folder / "window.parquet"),
            reference=str(folder / "reference.parquet"),
            schema=msgspec.json.decode(schema.to_json()),
            drift=msgspec.to_builtins(drift),
            heading=_heading(check, drift, len(window)),
            **loop.job_terms(),
        )
        result = loop.run_job(spec)
        if not result.ok:
            raise JobError(str(result.error))
        keep(folder / "out" / DRAWN)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compared(check: Check) -> DriftReport:
    try:
        drift = msgspec.convert(check.drift, DriftReport)
    except msgspec.ValidationError as error:
        raise NoReport(f"what check {check.id} found was written by another release: {error}") from error
    if drift.skipped is not None:
        raise NoReport(f"check {check.id} compared nothing ({drift.skipped}), so there is nothing to draw")
    return drift


def _reference(loop: Loop, check: Check, drift: DriftReport) -> tuple[FeatureSchema, pd.DataFrame]:
    try:
        manifest = loop.registry.manifest(check.version)
    except UnknownVersion as error:
        raise RowsGone(
            f"version {check.version}, with whose reference check {check.id} compared, was deleted by retention "
            "([retention] versions)"
        ) from error
    try:
        folder = loop.registry.fetch(check.version)
    except UnknownVersion as error:
        raise NoReport(str(error)) from error
    reference = pd.read_parquet(folder / REFERENCE)
    if manifest.expired or not len(reference):
        raise RowsGone(_gone(loop, check, drift, f"the reference rows of version {check.version}"))
    return FeatureSchema.from_json((folder / SCHEMA).read_bytes()), comparable(reference, loop.drift)


def _window(loop: Loop, check: Check, drift: DriftReport, schema: FeatureSchema) -> pd.DataFrame:
    until = math.nextafter(_until(check, drift), math.inf)
    window = read_window(loop.engine, schema, rows=drift.current_rows, version=check.version, until=until)
    if len(window) < min(loop.drift.min_rows, drift.current_rows):
        left = f"{len(window)} of the {drift.current_rows} rows" if len(window) else "the rows"
        raise RowsGone(_gone(loop, check, drift, left, some=bool(len(window))))
    return window


def _until(check: Check, drift: DriftReport) -> float:
    """When the newest row of the check was answered; checks of before 0.2.0 say only when they were made."""
    return drift.until_at or check.at


def _gone(loop: Loop, check: Check, drift: DriftReport, what: str, *, some: bool = False) -> str:
    """What was deleted, when and by which run."""
    told = f"only {what} of check {check.id} are left; the others were" if some else f"{what} of check {check.id} were"
    run = _deleted_by(loop, check, drift)
    if run is None:
        return f"{told} deleted"
    when = "" if run.finished_at is None else f" on {_moment(run.finished_at)}"
    return f"{told} deleted{when} by {'retention' if run.kind == 'retention' else 'an erasure'} (run {run.id})"


def _deleted_by(loop: Loop, check: Check, drift: DriftReport) -> Run | None:
    """The first run that deleted rows of the check: a retention of rows of that age, else an erasure since."""
    until = _until(check, drift)
    for run in reversed(loop.runs.list(kind="retention", limit=_RUNS)):
        if (run.document.get("older_than") or {}).get("predictions", 0.0) > until:
            return run
    for run in reversed(loop.runs.list(kind="erase", limit=_RUNS)):
        if run.outcome == "erased" and run.created_at > until:
            return run
    return None


def _heading(check: Check, drift: DriftReport, rows: int) -> str:
    seen = (
        f"{rows} rows" if rows >= drift.current_rows else f"{rows} of its {drift.current_rows} rows (others are gone)"
    )
    return (
        f"Check {check.id} of {_moment(check.at)}: {seen} that version {check.version} answered until "
        f"{_moment(_until(check, drift))}, against the version's reference"
    )


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
