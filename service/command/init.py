"""`evergreen init`: writes a commented `evergreen.toml` for a data file, and warns of columns that look wrong.

The commonest way to fool oneself with a prediction service is a column that is known only after the fact. So before the
file is written every column is looked at alone: does it equal the target, tell it all by itself, never change, name
each row?
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from monitoring.errors import EvergreenError
from monitoring.files import write_atomically
from monitoring.nearest import did_you_mean
from monitoring.wording import percent
from service.settings import FILE_NAME, SECTIONS
from service.settings_table import table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

LOOKED_AT_ROWS: Final = 20_000
"""Rows a column is judged by, evenly spread over the file: a second or two, whatever the file's size."""

USEFUL: Final[dict[str, tuple[str, ...]]] = {
    "model": ("name", "seed"),
    "data": ("source", "target", "time", "ignore", "task", "first", "sensitive"),
    "serve": ("host", "port", "workers", "max_records"),
    "store": ("url", "var"),
    "log": ("fsync", "max_spool_bytes"),
    "drift": ("threshold", "share", "window_rows", "min_rows", "key_features", "ignored_features"),
    "quality": ("metric", "window_rows", "max_fall"),
    "retrain": ("growth", "on_quality", "on_drift", "every_s", "cooldown_s", "min_labelled_rows"),
    "gates": ("metric", "min_gain", "confidence", "max_segment_loss"),
    "training": ("trials", "threads", "memory_mb", "timeout_s", "max_rows", "judge_every", "last_fit"),
    "adapt": ("enabled", "max_move", "guard_loss"),
    "schedule": ("check_interval_s",),
    "security": ("token", "trusted_types"),
    "alerts": ("webhook_url",),
    "retention": ("predictions_days", "labels_days"),
    "export": ("to",),
    "privacy": ("hash", "drop"),
    "logging": ("format", "level"),
    "trace": ("endpoint", "ratio"),
}
"""Keys that the written file shows, by section; the README has all of them."""


class InitError(EvergreenError, ValueError):
    """Raised when no settings can be written for the data; the message names file or column and the remedy."""


@dataclass(frozen=True, slots=True)
class InitReport:
    """What was written, and what to look at before training."""

    path: Path
    rows: int
    """With a label, and with a time where there is a time column: those that train."""
    without_label: int
    """Rows left out because their label is missing,"""
    without_time: int
    """and because only their time is."""
    task: str
    kinds: dict[str, str]
    """Feature → kind."""
    warnings: tuple[str, ...]


def init(
    data: Path,
    target: str,
    *,
    time: str = "",
    ignore: Sequence[str] = (),
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto",
    out: Path | None = None,
    force: bool = False,
) -> InitReport:
    """Write settings for `data` to `out` (`evergreen.toml` in the working directory) and say what was found.

    A relative `data` is written relative to `out`, so that the folder can move as a whole; an absolute one stays.
    Raises `InitError`, before anything is written.
    """
    from monitoring.schema import FeatureSchema
    from training.data import load_source

    path = Path(os.path.abspath(out or FILE_NAME))
    if path.exists() and not force:
        raise InitError(f"{path} exists already: --force replaces it")
    frame = load_source(data)
    columns = [str(name) for name in frame.columns]
    for option, column in (
        ("--target", target),
        *((("--time", time),) if time else ()),
        *(("--ignore", c) for c in ignore),
    ):
        if column not in columns:
            known = did_you_mean(column, columns) or "; it has " + ", ".join(columns)
            raise InitError(f'{option} "{column}": {data} has no such column{known}')
    if time == target or target in ignore:
        raise InitError(f'--target "{target}" is also --time or in --ignore')
    labelled = frame[frame[target].notna()]
    if (different := labelled[target].nunique()) < 2:
        raise InitError(f'--target "{target}" has {different} different values: nothing to predict')
    without_label = len(frame) - len(labelled)
    frame = labelled[labelled[time].notna()] if time else labelled
    without_time = len(labelled) - len(frame)
    left_out = [*ignore, *([time] if time and time not in ignore else [])]
    try:
        schema = FeatureSchema.infer(frame, target, ignore=left_out, task=None if task == "auto" else task)
    except ValueError as error:
        raise InitError(f"{data}: {error}") from None
    warnings = tuple(suspicious_columns(frame, target, time=time, features=schema.names, task=schema.task))
    source = str(data) if data.is_absolute() else os.path.relpath(data.absolute(), path.parent)
    known_values: dict[str, Any] = {
        "source": source,
        "target": target,
        "time": time,
        "ignore": list(ignore),
        "task": task,
    }
    _write(path, _toml(known_values, schema, len(frame), warnings))
    kinds = {feature.name: feature.kind for feature in schema.features}
    return InitReport(path, len(frame), without_label, without_time, schema.task, kinds, warnings)


def suspicious_columns(
    frame: pd.DataFrame, target: str, *, time: str = "", features: Sequence[str] = (), task: str = "binary"
) -> list[str]:
    """A warning for each feature that probably is none: constant, an id, the target again, known only later."""
    import numpy as np

    step = max(1, len(frame) // LOOKED_AT_ROWS)
    rows = frame.iloc[::step]
    regression = task == "regression"
    aim = rows[target].to_numpy(dtype=float) if regression else _codes(rows[target])
    found = []
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    for name in features:
        column = rows[name]
        values = column.dropna()
        different = values.nunique()
        if different <= 1:
            what = "always missing" if different == 0 else f"always {values.iloc[0]!r}"
            found.append(f'"{name}" is constant ({what} in {len(column)} rows looked at): ignore it')
        elif _equals(column, rows[target]):
            found.append(f'"{name}" equals the target: ignore it, it will not be known when predicting')
        elif column.dtype.kind == "M":
            if time and rows[time].dtype.kind == "M" and (later := float((column > rows[time]).mean())) > 0.01:
                found.append(f'"{name}" is later than "{time}" in {percent(later)} of the rows: known only afterwards?')
        elif _is_id(column, different):
            or_time = f", or say --time {name} if it orders them" if not time and column.dtype.kind in "iu" else ""
            found.append(f'"{name}" names rows ({different} different values in {len(values)}): ignore it{or_time}')
        else:
            codes = column.to_numpy(dtype=float, na_value=np.nan) if column.dtype.kind in "iufb" else _codes(column)
            score = _tells(codes.astype(np.float64), aim, regression)
            if score > 0.99:
                measure = "R²" if regression else "accuracy above guessing"
                found.append(
                    f'"{name}" alone tells the target ({measure} {score:.3f}): '
                    "is it known when predicting? else ignore it"
                )
            elif column.dtype.kind in "iuf" and not column.isna().any():
                numbers[name] = codes.astype(np.float64)
    if regression and (sum_of := _adds_up(numbers, aim)):
        names = " and ".join(f'"{name}"' for name in sum_of)
        found.append(f"{names} together add up to the target: are they known when predicting? else ignore them")
    if not time:
        moments = [str(name) for name in frame.columns if frame[name].dtype.kind == "M"]
        if moments:
            found.append(f'no --time was given: do the rows follow "{moments[0]}"? then say --time {moments[0]}')
    return found


def _codes(column: pd.Series) -> npt.NDArray[np.int64]:
    """Each different value as a number, missing as one of its own."""
    import numpy as np
    import pandas as pd

    return np.asarray(
        pd.factorize(column.astype(object).where(column.notna(), None), use_na_sentinel=False)[0], np.int64
    )


def _equals(column: pd.Series, target: pd.Series) -> bool:
    import pandas as pd

    if column.isna().any():
        return False
    if column.dtype.kind in "iufb" and target.dtype.kind in "iufb":
        return bool((column.astype(float) == target.astype(float)).all())
    left, right = pd.factorize(column.astype(str))[0], pd.factorize(target.astype(str))[0]
    return column.nunique() == target.nunique() and bool((left == right).all())


def _is_id(column: pd.Series, different: int) -> bool:
    """Text that hardly repeats, or whole numbers that never repeat and hardly leave gaps, or count up."""
    rows = int(column.notna().sum())
    if rows < 50:
        return False
    if column.dtype.kind == "O" or str(column.dtype) in ("string", "str"):
        return different > 0.9 * rows
    if column.dtype.kind in "iu" and different == rows:
        steps = column.diff().dropna()
        return bool((steps > 0).all() or (steps < 0).all()) or str(column.name).lower().endswith(("id", "uuid"))
    return False


def _tells(values: npt.NDArray[np.float64], aim: npt.NDArray[Any], regression: bool) -> float:
    """How well a small tree on this one column predicts rows it was not fitted to; 0 is guessing, 1 perfect.

    Every second row is fitted, the others are predicted, so a column of mere noise scores about 0.
    """
    import numpy as np
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    values = np.nan_to_num(values, nan=-1e30, posinf=1e30, neginf=-1e30)[:, None]
    fitted, asked = slice(0, None, 2), slice(1, None, 2)
    if len(np.unique(aim[fitted])) < 2:
        return 0.0
    tree = (DecisionTreeRegressor if regression else DecisionTreeClassifier)(max_leaf_nodes=256, min_samples_leaf=3)
    tree.fit(values[fitted], aim[fitted])
    score = float(tree.score(values[asked], aim[asked]))
    if regression:
        return score
    guess = float(np.bincount(aim[asked]).max()) / len(aim[asked])
    return (score - guess) / (1 - guess) if guess < 1 else 0.0


def _adds_up(numbers: dict[str, npt.NDArray[np.float64]], aim: npt.NDArray[Any]) -> list[str]:
    """The columns whose weighted sum is the target exactly (least squares leaves nothing), else none."""
    import numpy as np

    if len(numbers) < 2 or len(aim) <= 2 * len(numbers):
        return []
    names = list(numbers)
    matrix = np.column_stack([*numbers.values(), np.ones(len(aim))])
    spread = np.maximum(matrix.std(axis=0), 1e-12)
    weights, *_ = np.linalg.lstsq(matrix, aim, rcond=None)
    left = aim - matrix @ weights
    if float(left.var()) > 1e-6 * float(aim.var()):
        return []
    share = np.abs(weights * spread) / max(float(aim.std()), 1e-12)
    return [name for name, part in zip(names, share, strict=False) if part > 1e-3]


_COMMENT: Final[dict[str, Any]] = {"width": 117, "initial_indent": "# ", "subsequent_indent": "# "}


def _toml(data: dict[str, Any], schema: FeatureSchema, rows: int, warnings: Sequence[str]) -> str:
    """The file's text: what was asked for is set, every other key stands behind `#` with its default."""
    lines = textwrap.wrap(
        "Settings of Evergreen, written by `evergreen init`. What stands behind a # is the default; take the # away to "
        "change it. Relative paths are relative to this file. EVERGREEN_<SECTION>__<KEY> in the environment wins.",
        **_COMMENT,
    )
    defaults = {row.key: row for row in table()}
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for key in USEFUL[section]:
            row = defaults[f"{section}.{key}"]
            lines += textwrap.wrap(row.description, **_COMMENT)
            value = data.get(key) if section == "data" else None
            if value and value != "auto":
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
            else:
                lines.append(f"# {key} = {row.default}")
        if section == "data":
            lines += ["", *_found(schema, rows, warnings)]
    return "\n".join(lines) + "\n"


def _found(schema: FeatureSchema, rows: int, warnings: Sequence[str]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for feature in schema.features:
        kinds.setdefault(feature.kind, []).append(feature.name + ("?" if feature.nullable else ""))
    classes = f": {', '.join(str(each) for each in schema.classes[:10])}" if schema.classes else ""
    lines = [f"# Found in {rows:,} rows: {schema.task}{classes}. Features (? = sometimes missing):"]
    for kind, names in kinds.items():
        lines += textwrap.wrap(
            f"{kind}: {', '.join(names)}",
            117,
            initial_indent="#   ",
            subsequent_indent="#     ",
            break_on_hyphens=False,
        )
    for warning in warnings:
        lines += textwrap.wrap(f"Look at this: {warning}", 117, initial_indent="# ", subsequent_indent="#   ")
    return lines


def _write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    try:
        write_atomically(path, text.encode(), durable=False, mode=0o644)
    except OSError as error:
        raise InitError(f"cannot write {path}: {error.strerror}") from None
