"""`/page/versions/{a}/{b}`: two versions side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from monitoring.store import runs
from service.web.segments import newest_slices
from service.web.shapes import ImportanceRow, Row, SideBySide, SliceRow, VersionSide
from service.web.told import chips

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.serving.management.deployment import Managed
    from training.manifest import Slice, Slices
    from training.registry import Version


def side_by_side(here: Managed, a: int, b: int) -> SideBySide:
    """Raises `UnknownVersion`."""
    left, right = here.registry.get(a), here.registry.get(b)
    with here.engine.connect() as connection:
        known = [newest_slices(connection, version) for version in (a, b)]
        made = [_made_by(connection, version) for version in (a, b)]
    slices = [None if found is None else found[1] for found in known]
    data = [_data(side) for side in (left, right)]
    metrics = [side.manifest.quality.metrics if side.manifest.quality is not None else {} for side in (left, right)]
    return SideBySide(
        a=_side(left, made[0]),
        b=_side(right, made[1]),
        parameters=_rows(left.manifest.parameters, right.manifest.parameters),
        data=_rows(*data),
        libraries=_rows(left.manifest.libraries, right.manifest.libraries),
        metrics=_rows(*metrics),
        importance=_importance(left, right),
        slices=_slices(*slices),
        slice_metric=next((found.metric for found in slices if found is not None), ""),
    )


def _side(version: Version, run: int | None) -> VersionSide:
    manifest = version.manifest
    quality, verdict = manifest.quality, manifest.verdict
    return VersionSide(
        version=version.version,
        created_at=version.created_at,
        origin=version.origin,
        estimator=manifest.estimator,
        engine="scikit-learn" if manifest.twin is None else "onnx",
        seed=manifest.seed,
        reproducible=manifest.reproducible,
        passed=None if verdict is None else verdict.passed,
        metric="" if quality is None else quality.metric,
        value=None if quality is None else quality.challenger,
        error=None if quality is None else quality.error,
        rows=0 if quality is None else quality.rows,
        gates=() if verdict is None else chips(verdict.gates),
        run=run,
        notes=manifest.notes,
    )


def _made_by(connection: sa.Connection, version: int) -> int | None:
    """The run that made a version, None when it is gone."""
    table = runs.c
    for kind in ("retrain", "bootstrap", "push"):
        wanted = sa.select(sa.func.min(table.id)).where(table.kind == kind, table.version == version)
        found = connection.scalar(wanted)
        if found is not None:
            return int(found)
    return None


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
