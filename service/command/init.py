"""`evergreen init`: writes a commented `evergreen.toml` for a data file, and says what it decided of each column."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from monitoring.errors import EvergreenError
from monitoring.files import write_atomically
from monitoring.nearest import did_you_mean
from service.command.columns import Column, decide, sorted_by_target
from service.settings import FILE_NAME, SECTIONS
from service.settings_table import table

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema

USEFUL: Final[dict[str, tuple[str, ...]]] = {
    "model": ("name", "seed"),
    "data": ("source", "target", "time", "shuffle", "ignore", "task", "first", "sensitive", "trusted_holdout"),
    "serve": ("host", "port", "workers", "max_records"),
    "store": ("url", "var"),
    "log": ("fsync", "max_spool_bytes"),
    "drift": ("threshold", "share", "window_rows", "min_rows", "key_features", "ignored_features"),
    "quality": ("metric", "window_rows", "max_fall"),
    "retrain": ("growth", "on_quality", "on_drift", "every_s", "cooldown_s", "min_labelled_rows"),
    "data_checks": ("ranges", "missing", "duplicates", "leak", "classes", "label_shift"),
    "gates": ("metric", "min_gain", "confidence", "max_segment_loss"),
    "training": ("trials", "threads", "memory_mb", "timeout_s", "max_rows", "judge_every", "last_fit"),
    "adapt": ("enabled", "max_move", "guard_loss"),
    "schedule": ("check_interval_s",),
    "security": ("token", "trusted_packages", "trusted_types"),
    "alerts": ("webhook_url",),
    "retention": ("predictions_days", "labels_days"),
    "export": ("to",),
    "privacy": ("hash", "drop"),
    "logging": ("format", "level"),
    "trace": ("endpoint", "ratio"),
}
"""Keys that the written file shows, by section; docs/reference/settings.md has all of them."""


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
    columns: tuple[Column, ...]
    """In the order of the file."""
    warnings: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, str]:
        """Feature → kind."""
        return {each.name: each.kind for each in self.columns if each.use == "feature"}


def init(
    data: str | Path,
    target: str,
    *,
    time: str = "",
    shuffle: bool = False,
    ignore: Sequence[str] = (),
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto",
    out: Path | None = None,
    force: bool = False,
) -> InitReport:
    """Write settings for `data` to `out` (`evergreen.toml` in the working directory) and say what was found.

    A relative path in `data` is written relative to `out`, so that the folder can move as a whole; what else
    `training.source` reads stays as it is. Raises `InitError`, before anything is written.
    """
    from monitoring.schema import FeatureSchema
    from training.data import seconds_of
    from training.source import has_password, is_path, load_source, shown

    path = Path(os.path.abspath(out or FILE_NAME))
    if path.exists() and not force:
        raise InitError(f"{path} exists already: --force replaces it")
    data = str(data)
    if has_password(data):
        raise InitError(
            f"--data {shown(data)}: the file would hold the password; leave it out, and give it as PGPASSWORD or in "
            "~/.pgpass, or set EVERGREEN_DATA__SOURCE where the service runs"
        )
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
    if time and shuffle:
        raise InitError(f'--shuffle would undo the order of --time "{time}": give one of the two')
    labelled = frame[frame[target].notna()]
    if (different := labelled[target].nunique()) < 2:
        raise InitError(f'--target "{target}" has {different} different values: nothing to predict')
    without_label = len(frame) - len(labelled)
    frame = labelled[labelled[time].notna()] if time else labelled
    without_time = len(labelled) - len(frame)
    left_out = [*ignore, *([time] if time and time not in ignore else [])]
    try:
        if time:
            seconds_of(frame[time], time)
        schema = FeatureSchema.infer(frame, target, ignore=left_out, task=None if task == "auto" else task)
    except ValueError as error:
        raise InitError(f"{data}: {error}") from None
    decided = {each.name: each for each in decide(frame, schema, time=time)}
    decided |= {name: Column(name, "", "left out", "asked for by --ignore") for name in ignore}
    decided |= {time: Column(time, "", "time", "orders the rows")} if time else {}
    decided[target] = Column(target, schema.task, "target")
    features = tuple(feature for feature in schema.features if decided[feature.name].use == "feature")
    if not features:
        reasons = "; ".join(f'"{each.name}": {each.why}' for each in decided.values() if each.use == "left out")
        raise InitError(f"{data}: no column is left to predict from ({reasons})")
    schema = msgspec.structs.replace(schema, features=features)
    warnings: list[str] = []
    if not time and not shuffle and sorted_by_target(frame[target], regression=schema.task == "regression"):
        warnings.append("the rows are sorted by target: give --time COLUMN, or --shuffle if nothing orders them")
    here = is_path(data) and not os.path.isabs(data)
    source = os.path.relpath(os.path.abspath(data), path.parent) if here else data
    ordered = [decided[name] for name in columns]
    known_values: dict[str, Any] = {
        "source": source,
        "target": target,
        "time": time,
        "shuffle": shuffle,
        "ignore": [each for each in ordered if each.use == "left out"],
        "task": task,
    }
    lines = _toml(known_values, schema, len(frame), [*_looks(ordered), *warnings])
    _write(path, "\n".join(lines) + "\n")
    lined = tuple(replace(each, line=_line_of(each, lines)) for each in ordered)
    return InitReport(path, len(frame), without_label, without_time, schema.task, lined, tuple(warnings))


def _looks(columns: Sequence[Column]) -> list[str]:
    """What to look at in columns that are features."""
    return [f'"{each.name}" {each.why}' for each in columns if each.use == "feature" and each.why]


def _left_out(column: Column) -> str:
    """A column's line in `ignore`."""
    why = "".join(letter if letter.isprintable() else "?" for letter in " ".join(column.why.split()))
    return f"    {json.dumps(column.name, ensure_ascii=False)},  # {why}"


def _line_of(column: Column, lines: Sequence[str]) -> int | None:
    return lines.index(_left_out(column)) + 1 if column.use == "left out" else None


_COMMENT: Final[dict[str, Any]] = {"width": 117, "initial_indent": "# ", "subsequent_indent": "# "}


def _toml(data: dict[str, Any], schema: FeatureSchema, rows: int, warnings: Sequence[str]) -> list[str]:
    """The file's lines: what was asked for is set, every other key stands behind `#` with its default."""
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
            if value and key == "ignore":
                lines += ["ignore = [  # a line taken out brings its column back", *map(_left_out, value), "]"]
            elif value and value != "auto":
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
            else:
                lines.append(f"# {key} = {row.default}")
        if section == "data":
            lines += ["", *_found(schema, rows, warnings)]
    return lines


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
