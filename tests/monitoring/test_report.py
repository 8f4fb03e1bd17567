from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import DriftPolicy, detect
from monitoring.feature import Feature
from monitoring.report import write_html
from monitoring.schema import FeatureSchema

SCHEMA = FeatureSchema(
    (
        Feature("age", "numeric"),
        Feature("fixed", "numeric"),
        Feature("gone", "numeric"),
        Feature("member", "boolean"),
        Feature("city", "categorical"),
    ),
    target="bought",
    task="binary",
    classes=(0, 1),
)


def frame(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    made = pd.DataFrame({"age": rng.normal(40, 12, rows), "fixed": 1.0, "gone": 2.0, "member": rng.random(rows) < 0.3})
    made = made.astype(np.float32)
    made["city"] = rng.choice(np.array(["bonn", "oslo", None], dtype=object), rows)
    return made.assign(_score=rng.random(rows), _prediction=rng.integers(0, 2, rows))


def test_the_page_shows_every_column_with_values_and_the_tests_of_the_report(tmp_path: Path) -> None:
    reference, current = frame(3_000, 1), frame(400, 2)
    current["gone"] = np.float32("nan")
    current["age"] += 40
    current.loc[:99, "fixed"] = 2.0
    before = current.copy()
    report = detect(reference, current, SCHEMA, DriftPolicy(categorical_test="psi"))

    path = write_html(reference, current, SCHEMA, tmp_path / "reports" / "7.html", report=report, max_rows=200)

    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "reports" / "7.html"
    assert [file.name for file in path.parent.iterdir()] == ["7.html"]
    assert all(f'"{name}"' in page or f">{name}<" in page for name in ("age", "fixed", "member", "city", "prediction"))
    assert "PSI" in page and "Wasserstein distance (normed)" in page
    pd.testing.assert_frame_equal(current, before)


def test_a_page_without_anything_to_draw_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    empty = frame(50, 1).astype(object)
    empty[:] = np.nan
    with pytest.raises(ValueError, match="there is nothing to draw"):
        write_html(frame(50, 1), empty, SCHEMA, tmp_path / "8.html")
    assert list(tmp_path.iterdir()) == []
