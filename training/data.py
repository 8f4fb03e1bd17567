"""Source and labelled record -> one time-ordered frame, and the content-addressed snapshot a model is trained from.

A snapshot frame has the canonical features in schema order, then `_at` (float64, seconds since 1970 UTC), `_label`
(canonical) and `_origin` ("source" or "record"). pandas is imported inside the functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from monitoring.feature import AT, LABEL, ORIGIN
from monitoring.files import replacing
from monitoring.moments import ISO, UNITS, epoch_unit, holds_numbers, written
from training.source import DataError, load_source

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema

SNAPSHOT_COLUMNS: Final = (AT, LABEL, ORIGIN)

Origin = Literal["source", "record"]


class Prepared(msgspec.Struct, frozen=True):
    """A data file ready to train on: rows with a label, in time order; the schema of its columns."""

    frame: Any  # DataFrame: a snapshot frame, origin "source"
    schema: Any  # FeatureSchema


class Snapshot(msgspec.Struct, frozen=True):
    """Where a snapshot frame was written, and the sha256 of its content."""

    path: Path
    digest: str
    rows: int


def prepare(
    frame: pd.DataFrame,
    *,
    target: str,
    time: str = "",
    ignore: Iterable[str] = (),
    task: Literal["binary", "multiclass", "regression"] | None = None,
    schema: FeatureSchema | None = None,
) -> Prepared:
    """Labelled rows in time order, canonical, with the schema inferred from them (or the one given).

    Rows without a label are left out, with a `time` column also those without a time. `time` may hold
    what `seconds_of` reads. Without one the row order counts, and `_at` are the seconds -n … -1, before every recorded
    row. Rows of equal time keep their order.
    Raises `DataError`, or the schema's `SchemaError` for columns it cannot take.
    """
    import numpy as np

    from monitoring.schema import FeatureSchema

    for role, name in (("target", target), ("time", time)):
        if name and name not in frame.columns:
            known = ", ".join(map(str, frame.columns[:40]))
            raise DataError(f"the {role} column {name!r} is not in the data; it has {known}")
    unlabelled = frame[target].isna()
    untimed = frame[time].isna() if time else unlabelled & False
    kept = frame[~(unlabelled | untimed)]
    if not len(kept):
        raise DataError(
            f"none of the {len(frame)} rows has a label in {target!r}{f' and a time in {time!r}' if time else ''}"
        )
    at = seconds_of(kept[time], time) if time else np.arange(-len(kept), 0, dtype=np.float64)
    if not (np.diff(at) >= 0).all():
        order = np.argsort(at, kind="stable")
        kept, at = kept.iloc[order], at[order]
    if schema is None:
        left_out = [name for name in dict.fromkeys([time, *ignore]) if name]
        schema = FeatureSchema.infer(kept, target, ignore=left_out, task=task)
    features = kept[list(schema.names)]
    return Prepared(_dress(schema.canonical(features), at, schema.labels(kept[target]), "source"), schema)


def assemble(schema: FeatureSchema, source: pd.DataFrame | None, record: pd.DataFrame | None) -> pd.DataFrame:
    """One time-ordered snapshot frame of a prepared source and a labelled window of the record.

    `source` is `Prepared.frame`, `record` what `monitoring.window.read_window(labelled=True)` returns. Record rows
    without a label are left out. Of rows at the same time the source's come first.
    """
    import pandas as pd

    parts = []
    if source is not None and len(source):
        parts.append(_dress(schema.canonical(source), source[AT].to_numpy(), schema.labels(source[LABEL]), "source"))
    if record is not None and len(record):
        labelled = record[record[LABEL].notna()]
        if len(labelled):
            labels = schema.labels(labelled[LABEL])
            parts.append(_dress(schema.canonical(labelled), labelled[AT].to_numpy(), labels, "record"))
    if not parts:
        raise DataError("there is neither a source nor a labelled record: nothing to train on")
    together = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    return together.sort_values(AT, kind="stable", ignore_index=True)


def snapshot(frame: pd.DataFrame, folder: Path) -> Snapshot:
    """`frame` as a Parquet file in `folder`, named by the sha256 of its content.

    The digest is of the values, dtypes and column names: the same rows give the same digest with any version of the
    Parquet writer. A snapshot that is there already is not written again.
    """
    digest = content_digest(frame)
    path = folder / f"{digest}.parquet"
    if not path.exists():
        with replacing(path) as beside:
            frame.to_parquet(beside, index=False)
    return Snapshot(path, digest, len(frame))


def read_snapshot(path: Path, schema: FeatureSchema) -> pd.DataFrame:
    """The snapshot frame in `path`, canonical and in time order.

    Raises `DataError` when the file is missing, is no snapshot, or is not in time order.
    """
    import numpy as np
    import pandas as pd

    frame = load_source(path, columns=(*schema.names, *SNAPSHOT_COLUMNS))
    if not (np.diff(frame[AT].to_numpy(dtype=np.float64)) >= 0).all():
        raise DataError(f"snapshot {path} is not in time order: write it with training.data.snapshot(assemble(...))")
    labels = pd.Series(schema.labels(frame[LABEL]), index=frame.index)
    return schema.canonical(frame).assign(
        **{AT: frame[AT].to_numpy(dtype=np.float64), LABEL: labels, ORIGIN: frame[ORIGIN].astype(object)}
    )


def content_digest(frame: pd.DataFrame) -> str:
    """sha256 of column names, dtypes and values in row order, hexadecimal; the index does not count."""
    import pandas as pd

    digest = hashlib.sha256(f"evergreen snapshot 1\n{len(frame)}\n".encode())
    for name in frame.columns:
        column = frame[name]
        digest.update(f"{name}\x00{column.dtype}\n".encode())
        if column.dtype == object:
            # The text itself: a hash of each value would let two values meet.
            for value, missing in zip(column.tolist(), pd.isna(column).tolist(), strict=True):
                text = "" if missing else f"{type(value).__name__}:{value}"
                digest.update(f"{-1 if missing else len(text)}:{text}".encode())
        else:
            values = column.to_numpy()
            if values.dtype.kind == "f":
                values = values + values.dtype.type(0)  # -0.0 is 0.0
                values[values != values] = values.dtype.type("nan")  # one NaN, whatever its bits were
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _dress(features: pd.DataFrame, at: Any, labels: Any, origin: Origin) -> pd.DataFrame:
    import numpy as np

    frame = features.reset_index(drop=True)
    frame[AT] = np.asarray(at, dtype=np.float64)
    frame[LABEL] = labels
    frame[ORIGIN] = np.full(len(frame), origin, dtype=object)
    return frame


def seconds_of(column: pd.Series[Any], name: str) -> Any:
    """A time column as float64 seconds since 1970 UTC, NaN where it is missing.

    Dates, their text in ISO 8601 or another common format, and numbers. All numbers in the range of milli-, micro- or
    nanoseconds since 1970 are these; others stay as they are: seconds, or only an order.
    Raises `DataError` for anything else, and for text in which the day may be the month.
    """
    import numpy as np
    import pandas as pd

    if holds_numbers(column):
        unit = epoch_unit(column)
        return column.to_numpy(dtype=np.float64, na_value=np.nan) / (UNITS[unit] if unit else 1.0)
    try:
        moments = pd.to_datetime(column, utc=True, format=_format_of(column, name))
    except (ValueError, TypeError, OverflowError) as error:
        text = " ".join(str(error).split())[:160]
        raise DataError(f"the time column {name!r} holds neither numbers nor ISO-8601 dates: {text}") from None
    instants = moments.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    seconds = instants.astype(np.int64) / 1e6
    seconds[np.isnat(instants)] = np.nan
    return seconds


def _format_of(column: pd.Series[Any], name: str) -> str:
    if column.dtype.kind == "M":
        return ISO
    how = written(column)
    if how.odd is not None:
        raise DataError(f"the time column {name!r} holds dates ({how.formats[0]}), but also {how.odd!r}: correct it")
    if len(how.formats) > 1:
        raise DataError(
            f"the time column {name!r}: is {column.dropna().iloc[0]!r} written {' or '.join(how.formats)}? "
            "all rows fit both; write ISO 8601, such as 2026-01-31"
        )
    return how.formats[0] if how.formats else ISO


def row_order(frame: pd.DataFrame, *, time: str = "", shuffle: int | None = None) -> Any:
    """Positions of the rows in the order in which they train and are replayed: by time, at random, or as they are.

    `shuffle` is the seed of the random order. Raises `DataError` as `seconds_of` does.
    """
    import numpy as np

    if time:
        return time_order(frame[time])
    return np.arange(len(frame)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(frame))


def time_order(column: pd.Series[Any]) -> Any:
    """Positions in time order, as `prepare` has it: equal times keep their order, missing ones end it.

    Raises `DataError` as `seconds_of` does.
    """
    import numpy as np

    return np.argsort(seconds_of(column, str(column.name)), kind="stable")
