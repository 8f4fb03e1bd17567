"""`/page/segments`: for which groups of rows the champion is worst, as the newest check found it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.web.shapes import Segments, Slice
from training.comparison import newest_slices

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed


def feature_of(name: str) -> str:
    """The feature of a group's name: `city=Ulm`, `age in (30, 40]`, `city missing`."""
    for mark in ("=", " in (", " missing"):
        if mark in name:
            return name.partition(mark)[0]
    return name


def segments(here: Managed) -> Segments:
    with here.engine.connect() as connection:
        found = newest_slices(connection)
    if found is None:
        note = "no check has looked at groups of rows yet"
        return Segments(check=None, at=None, version=None, metric="", value=None, rows=0, slices=(), note=note)
    row, known = found
    note = ""
    if known.value is None:
        note = f"{known.metric} is not defined on the {known.rows} matured rows there are"
    elif not known.groups:
        needed = here.settings.gates.min_segment_rows
        note = f"no group of the {known.rows} matured rows has the {needed} rows that a judgement needs"
    whole = known.value or 0.0
    return Segments(
        check=row.id,
        at=row.at,
        version=row.version,
        metric=known.metric,
        value=known.value,
        rows=known.rows,
        slices=tuple(
            Slice(
                name=one.name,
                feature=feature_of(one.name),
                sensitive=one.sensitive,
                rows=one.rows,
                value=one.value,
                error=one.error,
                difference=one.value - whole,
            )
            for one in known.groups
        ),
        note=note,
    )
