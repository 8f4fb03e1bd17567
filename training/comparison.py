"""Two versions side by side, from what the store knows of them: what they are, from what, how good, and for whom.

The management API, the page and the command show this one. Imported by API workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from monitoring.store import checks, runs
from training.manifest import GateResult, Slice, Slices
from training.marks import Marks, marks

if TYPE_CHECKING:
    from training.registry import Registry, Version

MAKING = ("retrain", "bootstrap", "push")
"""Kinds of runs that make a version."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of both."""

    version: int
    created_at: float
    """Seconds since 1970 UTC."""
    origin: str
    estimator: str | None
    engine: str
    seed: int
    reproducible: bool
    passed: bool | None
    metric: str
    value: float | None
    """On its own holdout."""
    error: float | None
    rows: int
    """Of the holdout."""
    gates: tuple[GateResult, ...]
    run: int | None
    """That made it."""
    notes: tuple[str, ...]
    """Of its training."""
    tags: tuple[str, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table with two columns; values are JSON scalars or text."""

    name: str
    a: Any
    b: Any
    differs: bool


class ImportanceRow(msgspec.Struct, frozen=True, kw_only=True):
    feature: str
    a: float | None
    b: float | None


class SliceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The metric of one slice, each version on the matured rows it answered itself, at its newest check."""

    name: str
    sensitive: bool
    a: float | None
    b: float | None
    a_rows: int | None
    b_rows: int | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What two versions have in common and what not; null is "not known"."""

    a: Side
    b: Side
    parameters: tuple[Row, ...]
    data: tuple[Row, ...]
    libraries: tuple[Row, ...]
    metrics: tuple[Row, ...]
    """On each one's own holdout: other rows, so only roughly comparable."""
    importance: tuple[ImportanceRow, ...]
    """The largest of both first; a null: not measured, or the version does not have the feature."""
    slices: tuple[SliceRow, ...]
    slice_metric: str


def compare(engine: sa.Engine, registry: Registry, a: int, b: int) -> Comparison:
    """Raises `UnknownVersion`."""
    left, right = registry.get(a), registry.get(b)
    with engine.connect() as connection:
        known = [newest_slices(connection, version) for version in (a, b)]
        made = [made_by(connection, version) for version in (a, b)]
    slices = [None if found is None else found[1] for found in known]
    said = marks(engine)
    metrics = [side.manifest.quality.metrics if side.manifest.quality is not None else {} for side in (left, right)]
    return Comparison(
        a=_side(left, made[0], said.get(a, Marks()).tags),
        b=_side(right, made[1], said.get(b, Marks()).tags),
        parameters=_rows(left.manifest.parameters, right.manifest.parameters),
        data=_rows(*(_data(side) for side in (left, right))),
        libraries=_rows(*(_libraries(side) for side in (left, right))),
        metrics=_rows(*metrics),
        importance=_importance(left, right),
        slices=_slices(*slices),
        slice_metric=next((found.metric for found in slices if found is not None), ""),
    )


class _Known(msgspec.Struct):
    slices: Slices | None = None


def newest_slices(connection: sa.Connection, version: int | None = None) -> tuple[Any, Slices] | None:
    """(id, at, version) of the newest check (of this version), and what it found; None when there is none."""
    wanted = sa.select(checks.c.id, checks.c.at, checks.c.version, checks.c.quality).order_by(checks.c.id.desc())
    if version is not None:
        wanted = wanted.where(checks.c.version == version)
    row = connection.execute(wanted.limit(1)).first()
    if row is None or row.quality is None:
        return None
    found = msgspec.json.decode(row.quality, type=_Known).slices
    return None if found is None else (row, found)


def made_by(connection: sa.Connection, version: int) -> int | None:
    """The run that made a version, None when it is gone."""
    for kind in MAKING:
        wanted = sa.select(sa.func.min(runs.c.id)).where(runs.c.kind == kind, runs.c.version == version)
        found = connection.scalar(wanted)
        if found is not None:
            return int(found)
    return None


def _side(version: Version, run: int | None, tags: tuple[str, ...]) -> Side:
    manifest = version.manifest
    quality, verdict = manifest.quality, manifest.verdict
    return Side(
        version=version.version,
        created_at=version.created_at,
        origin=version.origin,
        estimator=manifest.estimator,
        engine=manifest.engine,
        seed=manifest.seed,
        reproducible=manifest.reproducible,
        passed=None if verdict is None else verdict.passed,
        metric="" if quality is None else quality.metric,
        value=None if quality is None else quality.challenger,
        error=None if quality is None else quality.error,
        rows=0 if quality is None else quality.rows,
        gates=() if verdict is None else verdict.gates,
        run=run,
        notes=manifest.notes,
        tags=tags,
    )


def _data(version: Version) -> dict[str, Any]:
    data, manifest = version.manifest.data, version.manifest
    return {
        "snapshot": data.snapshot,
        "rows of the snapshot": data.known,
        "rows fitted": data.rows,
        "window": None if data.window is None else data.window.name,
        "rows of the window": None if data.window is None else data.window.rows,
        "from": data.since,
        "until": data.until,
        "until, of the record": manifest.until or None,
        "fitted again to all rows": data.last_fit,
        "rows that judged": None if manifest.quality is None else manifest.quality.rows,
    }


def _libraries(version: Version) -> dict[str, str]:
    manifest = version.manifest
    return {**manifest.libraries, **({"machine": manifest.machine} if manifest.machine else {})}


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Row, ...]:
    names = dict.fromkeys((*a, *b))
    return tuple(
        Row(name=name, a=_shown(a.get(name)), b=_shown(b.get(name)), differs=a.get(name) != b.get(name))
        for name in names
    )


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _importance(left: Version, right: Version) -> tuple[ImportanceRow, ...]:
    a, b = left.manifest.importance or {}, right.manifest.importance or {}
    rows = [ImportanceRow(feature=name, a=a.get(name), b=b.get(name)) for name in dict.fromkeys((*a, *b))]
    return tuple(sorted(rows, key=lambda row: -max(row.a or 0.0, row.b or 0.0)))


def _slices(a: Slices | None, b: Slices | None) -> tuple[SliceRow, ...]:
    if a is not None and b is not None and a.metric != b.metric:
        b = None
    of: list[dict[str, Slice]] = [{} if one is None else {each.name: each for each in one.groups} for one in (a, b)]
    found = []
    for name in dict.fromkeys((*of[0], *of[1])):
        left, right = of[0].get(name), of[1].get(name)
        found.append(
            SliceRow(
                name=name,
                sensitive=any(one.sensitive for one in (left, right) if one is not None),
                a=None if left is None else left.value,
                b=None if right is None else right.value,
                a_rows=None if left is None else left.rows,
                b_rows=None if right is None else right.rows,
            )
        )
    return tuple(found)
