from __future__ import annotations

import re
from pathlib import Path

import pytest

import service.web
from monitoring.wording import METRICS, metric_name, percent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (0.0004, "<0.1%"),
        (0.001, "0.1%"),
        (0.4, "40%"),
        (0.997, "99.7%"),
        (0.9996, ">99.9%"),
        (sum([0.1] * 10), "100%"),
    ],
)
def test_nothing_and_all_are_said_only_where_they_are_meant(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_metric_without_a_name_of_its_own_is_written_as_words() -> None:
    assert [metric_name(name) for name in ("auc", "log_loss", "accuracy")] == ["AUC", "log loss", "accuracy"]


def test_the_page_writes_metrics_the_same_way() -> None:
    script = (Path(service.web.__file__).parent / "static" / "format.js").read_text()
    found = re.search(r"const METRICS = \{ (.*) \};", script)

    assert found is not None
    assert dict(re.findall(r'(\w+): "([^"]+)"', found[1])) == METRICS
