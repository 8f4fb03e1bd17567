"""The dashboard has what Grafana's published schema knows, and nothing else; run by `make test-operations`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_rules import DASHBOARD, ROOT

SDK = ROOT / "build" / "operations" / "env" / "bin" / "python"
OF_PROMETHEUS = {".annotations.list[0].titleFormat", ".annotations.list[0].step"}
"""Belong to the data source, whose annotations Grafana's schema leaves open."""


def unknown(board: dict[str, Any], folder: Path) -> set[str]:
    """The parts of a dashboard that the schema does not know."""
    file = folder / "board.json"
    file.write_text(json.dumps(board))
    program = Path(__file__).with_name("lost_in_grafana.py")
    done = subprocess.run([SDK, program, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture
def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def test_grafana_s_schema_knows_every_part_of_the_dashboard(board: dict[str, Any], tmp_path: Path) -> None:
    assert unknown(board, tmp_path) == OF_PROMETHEUS
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 30


def test_a_part_that_grafana_does_not_know_would_be_found(board: dict[str, Any], tmp_path: Path) -> None:
    stat, row, series = (
        next(p for p in board["panels"] if p["type"] == kind) for kind in ("stat", "row", "timeseries")
    )
    stat["options"]["colourMode"] = "value"
    row["collapse"] = True
    series["fieldConfig"]["defaults"]["custom"]["lineWith"] = 2
    series["targets"][0]["legend"] = "x"

    assert {found.rsplit(".", 1)[-1] for found in unknown(board, tmp_path) - OF_PROMETHEUS} == {
        "colourMode",
        "collapse",
        "lineWith",
        "legend",
    }


def test_no_panel_lies_over_another_or_outside(board: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for place in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(place, panel["title"]) == panel["title"]
