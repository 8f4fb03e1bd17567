"""Evidently's HTML page of one check, for people. What is decided is decided by `drift.detect`, never by this page.

Its figures cost about 0.1 s a column whatever the rows, and importing Evidently about 13 s once a process: write it
in a process that does nothing else (`training/drawing.py`).
"""

from __future__ import annotations

import warnings
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from monitoring.drift import OUTPUT, DriftPolicy, DriftReport, output_column, sampled
from monitoring.feature import SCORE
from monitoring.files import replacing

SHOWN_CHARS: Final = 60
"""Of one category: the page repeats it in every figure."""

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema


def write_html(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    schema: FeatureSchema,
    path: Path,
    *,
    report: DriftReport | None = None,
    heading: str = "",
    max_rows: int = 2_000,
    seed: int = 0,
) -> Path:
    """Write the page to `path` in one rename, and return it.

    Frames as for `drift.detect`. At most `max_rows` rows of each side, drawn with `seed`, so a distance may differ
    from the report's in the second digit. With `report`, each column is shown with that report's test and threshold;
    without, with the defaults of DriftPolicy. `heading` stands above everything. Columns without a value on one side
    are left out, because Evidently cannot draw them. Raises ValueError when no column is left.
    """
    import pandas as pd

    reference, current = sampled(reference, max_rows, seed), sampled(current, max_rows, seed)
    numeric: list[str] = []
    categorical: list[str] = []
    shown: dict[str, tuple[pd.Series[Any], pd.Series[Any]]] = {}
    for feature in schema.features:
        old, new = reference[feature.name], current[feature.name]
        if old.notna().any() and new.notna().any():
            shown[feature.name] = (old, new)
            (numeric if feature.kind in ("numeric", "datetime") else categorical).append(feature.name)
    column = output_column(reference, current)
    if column is not None and OUTPUT not in shown:
        shown[OUTPUT] = (reference[column], current[column])
        (numeric if column == SCORE or schema.task == "regression" else categorical).append(OUTPUT)
    if not shown:
        raise ValueError("no column has values in both the reference and the window: there is nothing to draw")
    frames = []
    for side in (0, 1):
        columns = {name: pair[side].reset_index(drop=True) for name, pair in shown.items()}
        columns = {name: _drawable(series, name in numeric) for name, series in columns.items()}
        frames.append(pd.DataFrame(columns))
    _write(frames[0], frames[1], numeric, categorical, path, report, heading)
    return path


def _write(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    numeric: list[str],
    categorical: list[str],
    path: Path,
    report: DriftReport | None,
    heading: str,
) -> None:
    policy = DriftPolicy()
    measured = [] if report is None else [*report.features, *([report.prediction] if report.prediction else [])]
    verdicts = {drift.name: drift for drift in measured}
    methods: dict[str, str] = {name: policy.numeric_test for name in numeric}
    methods |= {name: policy.categorical_test for name in categorical}
    methods |= {name: verdict.test for name, verdict in verdicts.items() if name in methods}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently's imports and its figures warn about their own libraries
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
        preset = DataDriftPreset(
            columns=[*numeric, *categorical],
            num_method=policy.numeric_test,
            cat_method=policy.categorical_test,
            threshold=policy.threshold,
            per_column_method=methods,
            per_column_threshold={name: verdict.threshold for name, verdict in verdicts.items() if name in methods},
            drift_share=policy.share,
        )
        run = Report([preset], include_tests=False).run(
            Dataset.from_pandas(current, data_definition=definition),
            Dataset.from_pandas(reference, data_definition=definition),
        )
        with replacing(path) as unfinished:
            run.save_html(str(unfinished))
            if heading:
                _head(unfinished, heading)


def _head(page: Path, heading: str) -> None:
    """Put the heading first on Evidently's page, and name the page by it."""
    text, shown = page.read_text(encoding="utf-8"), escape(heading)
    title, line = f"<head><title>{shown}</title>", f'<body><p style="font: 1rem sans-serif; margin: 1rem">{shown}</p>'
    page.write_text(text.replace("<head>", title, 1).replace("<body>", line, 1), encoding="utf-8")


def _drawable(series: pd.Series[Any], numeric: bool) -> pd.Series[Any]:
    """Float64 numbers, or text with None for missing: what Evidently's figures take."""
    if numeric:
        return series.astype("float64")
    return series.map(_shown, na_action="ignore").astype(object)


def _shown(value: Any) -> str:
    """A category as the page shows it: a long one is cut, and stays apart from others that begin alike."""
    text = str(value)
    if len(text) <= SHOWN_CHARS:
        return text
    return f"{text[: SHOWN_CHARS - 10]}… {crc32(text.encode('utf-8', 'backslashreplace')):08x}"
