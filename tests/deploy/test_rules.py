"""Rules, dashboard and runbooks speak of what there is: metrics, settings and commands that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitoring.metrics import Metrics
from service.command.cli import app
from service.settings_table import table

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "rules.test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "evergreen.json"
RUNBOOKS = ROOT / "docs" / "runbooks.md"


def known_series(folder: Path) -> dict[str, set[str]]:
    """Name of each series that `/metrics` may have -> its labels."""
    metrics = Metrics(folder, "rules-1")
    known: dict[str, set[str]] = {
        "evergreen_build_info": {"version", "python", "bentoml", "sklearn"},
        "evergreen_model_info": {"model", "version", "engine", "worker"},
    }
    for collector in vars(metrics).values():
        if not hasattr(collector, "_documentation"):
            continue
        labels, name = set(collector._labelnames), collector._name
        if collector._type == "histogram":
            known |= {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            known[f"{name}_total" if collector._type == "counter" else name] = labels
    metrics.close()
    return known


def rules() -> list[dict[str, Any]]:
    found = msgspec.yaml.decode(RULES.read_bytes())
    return [rule for group in found["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    """Every query of the dashboard."""
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return [*asked, *(note["expr"] for note in board["annotations"]["list"])]


def strangers(query: str, known: dict[str, set[str]]) -> list[str]:
    """What a query names that no series has: names of series, and of labels in its selectors."""
    found = [name for name in re.findall(r"\bevergreen_\w+", query) if name not in known]
    for name, inside in re.findall(r"\b(evergreen_\w+)\{([^}]*)\}", query):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
        found += [f"{name}{{{label}}}" for label in labels - known.get(name, set()) - {"job", "instance"}]
    return found


def test_rules_and_dashboard_ask_for_series_that_exist(tmp_path: Path) -> None:
    known = known_series(tmp_path)
    asked = [*(rule["expr"] for rule in rules()), *queries()]

    assert len(asked) > 50
    assert {query: unknown for query in asked if (unknown := strangers(query, known))} == {}


def test_what_does_not_exist_would_be_found(tmp_path: Path) -> None:
    known = known_series(tmp_path)

    assert strangers('rate(evergreen_requests_total{state="x"}[5m])', known) == ["evergreen_requests_total{state}"]
    assert strangers("evergreen_rows_lost_total > 0", known) == ["evergreen_rows_lost_total"]


def test_every_alert_has_a_summary_a_severity_a_runbook_and_tests_of_both_kinds() -> None:
    headings = set(re.findall(r"^## (Evergreen\w+)$", RUNBOOKS.read_text(), re.MULTILINE))
    tested: dict[str, set[bool]] = {}
    for case in msgspec.yaml.decode(RULE_TESTS.read_bytes())["tests"]:
        for one in case["alert_rule_test"]:
            tested.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))

    for rule in rules():
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"
        assert tested.get(name) == {True, False}, f"{name}: one test that fires and one that does not"
    assert headings == {rule["alert"] for rule in rules()}


def test_runbooks_name_settings_and_commands_that_exist() -> None:
    text = RUNBOOKS.read_text()
    sections = {row.key.partition(".")[0] for row in table()}
    named = {word for word in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if word.partition(".")[0] in sections}
    commands = {command.name for command in (*app.registered_commands, *app.registered_groups)}

    assert named and named <= {row.key for row in table()}
    assert set(re.findall(r"`evergreen ([a-z]+)\b", text)) <= commands


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: `make test-operations` does")
def test_the_rules_fire_when_they_should_and_are_quiet_when_they_should() -> None:
    done = subprocess.run(["promtool", "test", "rules", str(RULE_TESTS)], capture_output=True, text=True, timeout=600)

    assert done.returncode == 0, done.stdout + done.stderr
