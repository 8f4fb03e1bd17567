"""A version trained again from its manifest and its snapshot, and what it predicts compared bit for bit.

Nothing is written: the model that was made again lives and ends in a process of its own (`training/apart.py`).
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from monitoring.errors import CannotGoOn, EvergreenError
from monitoring.schema import FeatureSchema
from training.apart import Bounds, answer, ask
from training.artefact import SCHEMA, verify
from training.manifest import Manifest, manifest_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from training.loaded import LoadedModel
    from training.registry import Version

    Array = npt.NDArray[Any]


class CannotReproduce(CannotGoOn, RuntimeError):
    """Raised when a version cannot be trained again: what it was made from is not known, or not there any more."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is given: a version to make again."""

    version: int
    manifest: dict[str, Any]  # as the store has it
    folder: str  # of the artefact
    snapshot: str  # path
    rows: int  # of the snapshot that are answered, at most, evenly spaced
    trusted: tuple[str, ...] = ()
    store: str = ""  # URL, whose record has the version's answers; "": these are not compared


class Changed(msgspec.Struct, frozen=True):
    """What was not now as it was then."""

    name: str
    then: str | None
    now: str | None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """The newest answers of the record that the version gave, and what the one made again says to the same requests."""

    rows: int = 0
    identical: int = 0  # of these
    adapted: int = 0  # of these rows, answered through an adaptation
    adaptations: tuple[int, ...] = ()  # numbers of those
    left_out: int = 0  # rows whose adaptation the store does not keep any more


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """What came of making a version again. Differences are of probabilities, or of a regression's values."""

    version: int
    estimator: str
    trained_on: int  # rows
    last_fit: bool  # fitted to all rows after it was judged; False: it is the judged model itself
    rows: int  # that both answered
    identical: int  # of these, with the same bits in every number, of the pipeline and of what serves it
    largest: float | None  # difference; None: no row differs
    served_by: str  # compared besides the pipeline: "trees" or "onnx", "" when the pipeline itself serves
    recorded: Recorded
    changed: tuple[Changed, ...]  # libraries and machine
    note: str  # "" or what could not be compared
    seconds: float

    @property
    def same(self) -> bool:
        """Whether every answer is the same, bit for bit."""
        return self.identical == self.rows and self.recorded.identical == self.recorded.rows


def reproduce(
    version: Version,
    folder: Path,
    snapshots: Path,
    *,
    rows: int,
    bounds: Bounds,
    trusted: tuple[str, ...] = (),
    store: str = "",
) -> Reproduction:
    """Train the version again from the snapshot in `snapshots`, and compare it with the artefact in `folder`.

    Raises `CannotReproduce`, which says why, and `WorkFailed` when the training itself failed.
    """
    snapshot = snapshot_of(version, snapshots)
    made = Made(
        version=version.version,
        manifest=version.manifest.document,
        folder=str(folder),
        snapshot=str(snapshot),
        rows=rows,
        trusted=trusted,
        store=store,
    )
    return ask("training.reproduction", made, Reproduction, bounds)


def snapshot_of(version: Version, snapshots: Path) -> Path:
    """The rows a version was made from. Raises `CannotReproduce`: what is missing, why, and what to do."""
    manifest, data, number = version.manifest, version.manifest.data, version.version
    if version.origin == "push" or data.window is None:
        raise CannotReproduce(
            f"version {number} was pushed: what it was fitted to, and by what program, only its pusher knows. "
            f"Its artefact holds the model itself: `evergreen models export {number} --to FOLDER`"
        )
    by = f" by run {manifest.erasure}" if manifest.erasure is not None else ""
    if data.snapshot is None:
        raise CannotReproduce(
            f"version {number} cannot be made again: every row it was trained on was erased{by}; "
            "`evergreen retrain` trains one on the rows there are"
        )
    path = snapshots / f"{data.snapshot}.parquet"
    if path.is_file():
        return path
    if manifest.expired is not None:
        why = "retention deleted it with rows of its age (`retention.predictions_days`); it cannot be made again"
    else:
        why = "retention deleted it, or another host trained the version: copy the file from there, or from a backup"
    raise CannotReproduce(f"the snapshot that version {number} was trained on is not at {path}: {why}")


def changed(manifest: Manifest) -> tuple[Changed, ...]:
    """The libraries, and the machine, that are not as they were when a version was made."""
    from training.export import libraries, machine

    then, now = manifest.libraries, libraries()
    found = [Changed(name, then.get(name), now.get(name)) for name in dict.fromkeys((*then, *now))]
    if manifest.machine:
        found.append(Changed("machine", manifest.machine, machine()))
    return tuple(one for one in found if one.then != one.now)


def make_again(made: Made) -> Reproduction:
    """What the process does. Raises `CannotReproduce`, which names the libraries that are not as they were."""
    try:
        return _make_again(made)
    except CannotReproduce:
        raise
    except Exception as error:  # of any library: a later one may refuse what an earlier one wrote
        said = str(error) if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
        since = [f"{one.name} {one.then} then, {one.now} now" for one in changed(manifest_of(made.manifest))]
        told = f"; since it was made changed: {', '.join(since)}" if since else ""
        raise CannotReproduce(f"version {made.version} cannot be made again: {said}{told}") from error


def _make_again(made: Made) -> Reproduction:
    from training.data import read_snapshot
    from training.fitting import refit
    from training.loaded import LoadedModel, load_model
    from training.pipeline import predict
    from training.trust import load_pipeline

    began = time.perf_counter()
    folder, snapshot = Path(made.folder), Path(made.snapshot)
    verify(folder)
    manifest = manifest_of(made.manifest)
    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    frame = read_snapshot(snapshot, schema)
    _check_whole(made.version, manifest, len(frame))
    places = np.unique(np.linspace(0, len(frame) - 1, min(made.rows, len(frame))).astype(int))
    rows = frame.iloc[places][list(schema.names)].reset_index(drop=True)
    pipeline = refit(manifest, snapshot, schema)
    before = load_pipeline(folder, made.trusted)
    pairs = [(predict(before, rows, schema), predict(pipeline, rows, schema))]
    served, note = load_model(folder, manifest, schema, made.trusted), ""
    again = [LoadedModel(schema, None, pipeline)]
    if served.has_twin:
        twins, note = _twins(pipeline, schema, rows, served.engine)
        if twins:
            again = twins
            pairs.append((served.answer(rows), again[0].answer(rows)))
    same = np.logical_and.reduce([same_bits(*pair) for pair in pairs])
    recorded = _recorded(made, again, schema) if made.store else Recorded()
    return Reproduction(
        version=made.version,
        estimator=manifest.estimator or "",
        trained_on=manifest.data.rows or 0,
        last_fit=bool(manifest.data.last_fit),
        rows=len(rows),
        identical=int(same.sum()),
        largest=None if same.all() else max(largest_difference(*pair) for pair in pairs),
        served_by=served.engine if len(pairs) > 1 else "",
        recorded=recorded,
        changed=changed(manifest),
        note=note,
        seconds=time.perf_counter() - began,
    )


def _check_whole(version: int, manifest: Manifest, rows: int) -> None:
    known = manifest.data.known
    if known is not None and rows < known:
        by = f" by run {manifest.erasure}" if manifest.erasure is not None else ""
        raise CannotReproduce(
            f"version {version} cannot be made again: {known - rows:,} of the {known:,} rows it was made from were "
            f"erased{by}, and without them another model comes of it; `evergreen retrain` trains one"
        )


def _twins(pipeline: Any, schema: FeatureSchema, rows: pd.DataFrame, engine: str) -> tuple[list[LoadedModel], str]:
    """The twin of a pipeline as this engine answers it and, behind compiled trees, as ONNX does; or why it has none."""
    from training.artefact import plain
    from training.convert import convert
    from training.flatten import flatten
    from training.loaded import LoadedModel
    from training.manifest import Plan
    from training.twin import Twin

    model, plan, parity = convert(pipeline, schema, rows)
    if model is None or plan is None:
        return [], f"made again it has no ONNX twin, only the pipelines were compared: {parity.reason}"
    contents: list[bytes | None] = [None]
    if engine == "trees":
        trees, exact = flatten(pipeline, schema, rows, model, plan)
        if trees is None:
            return [], f"made again it has no compiled trees, only the pipelines were compared: {exact.reason}"
        contents.insert(0, trees)
    read = msgspec.convert(plain(plan), Plan)
    return [LoadedModel(schema, Twin.of(model, read, schema, trees), None) for trees in contents], ""


def _recorded(made: Made, again: list[LoadedModel], schema: FeatureSchema) -> Recorded:
    """The recorded answers against those of one of the models: which engine gave one is not recorded."""
    from monitoring.feature import ADAPTATION
    from monitoring.store import connect
    from monitoring.window import read_window
    from training.adaptation import Adapter, decode
    from training.adaptations import Adaptations, UnknownAdaptation
    from training.adapting import served_of

    engine = connect(made.store)
    try:
        window = read_window(engine, schema, version=made.version, rows=made.rows)
        if window.empty:
            return Recorded()
        said = served_of(window, schema)
        numbers = window[ADAPTATION].to_numpy(dtype=np.float64)
        kept, adapters = np.isfinite(said).reshape(len(said), -1).all(axis=1), {}
        for number in sorted({int(one) for one in numbers[np.isfinite(numbers)]}):
            try:
                adapters[number] = Adapter(decode(Adaptations(engine).served(made.version, number)))
            except UnknownAdaptation:
                kept &= ~(numbers == number)
    finally:
        engine.dispose()
    same = np.zeros(len(said), bool)
    told = said[:, 1:] if schema.task == "binary" else said  # one of both probabilities is in the record's window
    for model in again:
        raw, x = model.answer_with_matrix(schema.canonical(window[list(schema.names)]))
        given = raw.copy()
        for number, adapter in adapters.items():
            at = numbers == number
            given[at] = adapter.apply(raw[at], x[at])
        given = given[:, 1:] if schema.task == "binary" else given
        same |= same_bits(told.astype(given.dtype), given)
    same &= kept
    return Recorded(
        rows=int(kept.sum()),
        identical=int(same.sum()),
        adapted=int((kept & np.isfinite(numbers)).sum()),
        adaptations=tuple(adapters),
        left_out=int((~kept).sum()),
    )


def same_bits(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    """Which rows have the same bits in every number; none when the numbers are of two types."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return np.zeros(len(a), dtype=bool)
    if not len(a):
        return np.zeros(0, dtype=bool)
    one, other = (np.ascontiguousarray(each).view(np.uint8).reshape(len(a), -1) for each in (a, b))
    same: npt.NDArray[np.bool_] = (one == other).all(axis=1)
    return same


def largest_difference(a: Array, b: Array) -> float:
    """The largest absolute difference; 0 where there is nothing to compare."""
    if a.shape != b.shape:
        return math.inf
    found = np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
    return float(np.nanmax(found, initial=0.0))


if __name__ == "__main__":
    sys.exit(answer(Made, make_again))
