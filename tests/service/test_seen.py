"""What training saw: the schema's ranges and the reference's, and what of a request lies outside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.decode import RequestDecoder
from monitoring.feature import MAX_CATEGORIES
from monitoring.schema import FeatureSchema
from service.serving.seen import MOST_ROWS, Warned, seen
from training.artefact import REFERENCE
from training.artefact import SCHEMA as SCHEMA_FILE

FRAME = pd.DataFrame(
    {
        "income": [0.1, 52_000.0, None],
        "opened": pd.to_datetime(["2024-01-01", "2024-06-30", None]),
        "owner": [True, False, True],
        "purpose": ["car", "home", None],
        "code": ["a", "b", "c"],
        "late": [0, 1, 0],
    }
)
SCHEMA = FeatureSchema.infer(FRAME, "late")


def warned(folder: Path, *records: dict[str, object], schema: FeatureSchema = SCHEMA) -> list[Warned]:
    usual = {"income": 10, "opened": "2024-03-01", "owner": True, "purpose": "car", "code": "a"}
    body = json.dumps({"records": [usual | record for record in records]}).encode()
    (folder / SCHEMA_FILE).write_bytes(schema.to_json())
    return seen(folder).warnings(RequestDecoder(schema, 1_000).decode(body))


def test_what_training_saw_needs_no_warning(tmp_path: Path) -> None:
    edges = {"income": 0.1, "opened": "2024-01-01"}, {"income": 52_000, "opened": "2024-06-30"}
    missing = {"income": None, "opened": None, "owner": None, "purpose": None, "code": None}

    assert warned(tmp_path, *edges, missing) == []


def test_each_column_that_lies_outside_is_named_once_with_its_rows(tmp_path: Path) -> None:
    found = warned(
        tmp_path,
        {"income": -1, "purpose": "boat"},
        {},
        {"income": 52_001, "opened": "2023-12-31", "purpose": "plane", "code": ""},
    )

    assert found == [
        Warned("income", "range", 2, [0, 2], "-1 is outside what training saw, 0.1 to 52000"),
        Warned(
            "opened",
            "range",
            1,
            [2],
            "2023-12-31T00:00:00Z is outside what training saw, 2024-01-01T00:00:00Z to 2024-06-30T00:00:00Z",
        ),
        Warned("purpose", "category", 2, [0, 2], '"boat" is a category that training did not see'),
        Warned("code", "category", 1, [2], '"" is a category that training did not see'),
    ]


def test_what_stands_in_the_reference_of_the_version_was_seen_too(tmp_path: Path) -> None:
    newer = pd.DataFrame({"income": [90_000.0, np.nan], "opened": ["2025-01-01", None], "owner": [True, False]})
    newer = newer.assign(purpose=["boat", None], code=["d", "a"], opened=pd.to_datetime(newer["opened"]))
    SCHEMA.canonical(newer).to_parquet(tmp_path / REFERENCE)

    assert warned(tmp_path, {"income": 89_000, "opened": "2024-12-31", "purpose": "boat", "code": "d"}) == []
    assert [one.column for one in warned(tmp_path, {"income": 90_001, "purpose": "plane"})] == ["income", "purpose"]


def test_a_warning_counts_all_rows_and_names_the_first(tmp_path: Path) -> None:
    (found,) = warned(tmp_path, *[{"purpose": f"boat {n}"} for n in range(MOST_ROWS + 5)])

    assert (found.count, found.rows, found.message[:8]) == (MOST_ROWS + 5, list(range(MOST_ROWS)), '"boat 0"')


@pytest.mark.parametrize(("known", "columns"), [(MAX_CATEGORIES - 1, ["code"]), (MAX_CATEGORIES, [])])
def test_of_a_feature_with_more_categories_than_are_remembered_nobody_knows(
    tmp_path: Path, known: int, columns: list[str]
) -> None:
    frame = pd.concat([FRAME] * (known // 3 + 1)).head(known).assign(code=[f"c{n}" for n in range(known)])

    found = warned(tmp_path, {"code": "new"}, schema=FeatureSchema.infer(frame, "late"))

    assert [one.column for one in found] == columns


def test_a_feature_that_was_never_present_has_no_range(tmp_path: Path) -> None:
    never = FeatureSchema.infer(FRAME.assign(income=pd.Series([np.nan] * 3, dtype=float)), "late")

    assert warned(tmp_path, {"income": 1e9}, schema=never) == []
