"""Two versions asked the same rows: how far their predictions are apart, and which of them the labels speak for.

In a process of its own (`training/apart.py`); nothing is written. What is compared are the versions' own outputs, as
they serve them without an adaptation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.feature import AT, LABEL, ORIGIN
from monitoring.schema import FeatureSchema
from training.apart import Bounds, answer, ask
from training.artefact import SCHEMA, verify
from training.manifest import manifest_of
from training.reproduction import largest_difference, same_bits

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa

    from training.registry import Registry, Version

LEAST_RECORDED: Final = 100
"""Rows of the record that are worth more than those of a snapshot."""
LEAST_LABELLED: Final = 20
"""Labelled rows that are new to both; fewer say nothing."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is given; of each pair the first is version a's, the second b's."""

    numbers: tuple[int, int]
    manifests: tuple[dict[str, Any], dict[str, Any]]
    folders: tuple[str, str]
    snapshots: tuple[str, str]  # paths; "" or of no file: not here
    store: str  # URL
    rows: int
    sources: tuple[str, ...] = ()  # names of the tokens whose labels count; none: all
    trusted: tuple[str, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What labels say of both, on rows of the record that neither was fitted to; of a loss the smaller is better."""

    rows: int
    metric: str
    a: float
    b: float
    error: float
    """Standard error of the difference."""


class SameRows(msgspec.Struct, frozen=True, kw_only=True):
    """Differences are of the probability of a row's own answer by `a`, or of a regression's values."""

    rows: int = 0
    asked: str = ""
    """Which rows: `the newest of the record`, or `of the snapshot of version 2`."""
    identical: int = 0
    """Of these, with the same bits in every number."""
    agree: int | None = None
    """Of these, answered with the same class; null for a regression."""
    mean: float | None = None
    """Mean absolute difference."""
    largest: float | None = None
    evidence: Evidence | None = None
    """null: too few labelled rows are new to both."""
    shared: int | None = None
    """Rows that both snapshots hold; null where one of them is not here."""
    note: str = ""
    """"" or why nothing was compared."""


def same_rows(
    engine: sa.Engine,
    registry: Registry,
    a: int,
    b: int,
    snapshots: Path,
    *,
    rows: int,
    bounds: Bounds,
    sources: tuple[str, ...] = (),
    trusted: tuple[str, ...] = (),
) -> SameRows:
    """Raises `UnknownVersion` when one of both, or its artefact, is not here, and `WorkFailed`."""
    both: list[Version] = [registry.get(a), registry.get(b)]
    digests = [one.manifest.data.snapshot for one in both]
    paths = ["" if digest is None else str(snapshots / f"{digest}.parquet") for digest in digests]
    pair = Pair(
        numbers=(a, b),
        manifests=(both[0].manifest.document, both[1].manifest.document),
        folders=(str(registry.fetch(a)), str(registry.fetch(b))),
        snapshots=(paths[0], paths[1]),
        store=engine.url.render_as_string(hide_password=False),
        rows=rows,
        sources=sources,
        trusted=trusted,
    )
    return ask("training.same_rows", pair, SameRows, bounds)


def ask_both(pair: Pair) -> SameRows:
    """What the process does."""
    from training.loaded import load_model

    folders = [Path(folder) for folder in pair.folders]
    for folder in folders:
        verify(folder)
    schemas = [FeatureSchema.from_json((folder / SCHEMA).read_bytes()) for folder in folders]
    shared = _shared(pair)
    if why := _apart(pair.numbers, schemas[0], schemas[1]):
        return SameRows(shared=shared, note=why)
    asked, frame = _rows(pair, schemas)
    if frame is None or not len(frame):
        return SameRows(shared=shared, note=asked)
    manifests = [manifest_of(document) for document in pair.manifests]
    said = [
        load_model(folder, manifest, schema, pair.trusted).answer(schema.canonical(frame[list(schema.names)]))
        for folder, manifest, schema in zip(folders, manifests, schemas, strict=True)
    ]
    a, b = (np.asarray(one, dtype=np.float64) for one in said)
    classes = schemas[0].task != "regression"
    best = a.argmax(axis=1) if classes else None
    at = np.arange(len(frame))
    apart = np.abs(a[at, best] - b[at, best]) if best is not None else np.abs(a - b)
    return SameRows(
        rows=len(frame),
        asked=asked,
        identical=int(same_bits(*said).sum()),
        agree=None if best is None else int((best == b.argmax(axis=1)).sum()),
        mean=float(apart.mean()),
        largest=largest_difference(a, b),
        evidence=_evidence(frame, a, b, schemas[0], max(manifest.until for manifest in manifests)),
        shared=shared,
    )


def _apart(numbers: tuple[int, int], a: FeatureSchema, b: FeatureSchema) -> str:
    """Why the same rows cannot be given to both; "" when they can."""
    what = [{feature.name: feature.kind for feature in schema.features} for schema in (a, b)]
    for one, other, number in ((what[0], what[1], numbers[0]), (what[1], what[0], numbers[1])):
        if more := [name for name in one if other.get(name) != one[name]]:
            return f"version {number} takes {', '.join(more[:5])}, which the other does not, or in another form"
    if (a.task, a.classes) != (b.task, b.classes):
        return f"they answer different things: {a.task} {list(a.classes)[:5]}, {b.task} {list(b.classes)[:5]}"
    return ""


def _rows(pair: Pair, schemas: list[FeatureSchema]) -> tuple[str, pd.DataFrame | None]:
    """Which rows are asked, and these; without any, why."""
    from monitoring.store import connect
    from monitoring.window import read_window
    from training.data import read_snapshot

    newer = 0 if pair.numbers[0] > pair.numbers[1] else 1
    engine = connect(pair.store)
    try:
        window = read_window(engine, schemas[newer], rows=pair.rows, sources=pair.sources)
    finally:
        engine.dispose()
    if len(window) >= min(LEAST_RECORDED, pair.rows):
        return "the newest of the record", window.assign(**{ORIGIN: "record"})
    for at in (newer, 1 - newer):
        path = Path(pair.snapshots[at])
        if path.is_file():
            frame = read_snapshot(path, schemas[at])
            places = np.unique(np.linspace(0, len(frame) - 1, min(pair.rows, len(frame))).astype(int))
            return f"of the snapshot of version {pair.numbers[at]}", frame.iloc[places].reset_index(drop=True)
    return f"the record has {len(window)} rows that they take, and no snapshot of them is on this host", None


def _evidence(frame: pd.DataFrame, a: Any, b: Any, schema: FeatureSchema, until: float) -> Evidence | None:
    from training.comparing import LOSSES, Truth, difference

    new = ((frame[ORIGIN] == "record") & (frame[AT] > until) & frame[LABEL].notna()).to_numpy()
    if new.sum() < LEAST_LABELLED:
        return None
    truth = Truth.of(schema.labels(frame.loc[new, LABEL]), schema)
    measure = LOSSES[schema.task]
    found = difference(b[new], a[new], truth, measure)
    if found is None:
        return None
    return Evidence(rows=int(new.sum()), metric=measure, a=-found.old, b=-found.new, error=found.error)


def _shared(pair: Pair) -> int | None:
    """How many rows are in both snapshots, by all of their columns."""
    import pandas as pd

    if not all(Path(path).is_file() for path in pair.snapshots):
        return None
    if pair.snapshots[0] == pair.snapshots[1]:
        return len(pd.read_parquet(pair.snapshots[0], columns=[AT]))
    frames = [pd.read_parquet(path) for path in pair.snapshots]
    if list(frames[0].columns) != list(frames[1].columns):
        return None
    prints = [pd.Series(pd.util.hash_pandas_object(frame, index=False)).value_counts() for frame in frames]
    return int(prints[0].combine(prints[1], min, fill_value=0).sum())


if __name__ == "__main__":
    sys.exit(answer(Pair, ask_both))
