"""The direction `service → training → monitoring` and one importer for each big library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("service", "training", "monitoring")

MAY_IMPORT = {
    "monitoring": {"monitoring"},
    "training": {"training", "monitoring"},
    "service": {"service", "training", "monitoring"},
}

IMPORTERS = {
    "bentoml": {"service/app.py", "training/registry.py"},
    "evidently": {"monitoring/drift.py", "monitoring/report.py"},
    "apscheduler": {"service/control/scheduler.py"},
    "optuna": {"training/tune.py"},
    "skops": {"training/export.py"},
    "skl2onnx": {"training/export.py"},
    "fastapi": {"service/serving/management.py"},
    "typer": {"service/command/cli.py"},
    "prometheus_client": {"monitoring/metrics.py"},
    "onnxruntime": {"training/twin.py"},
}


def imports(source: str) -> set[str]:
    """Dotted names of every module that the source imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(package: str, path: str, source: str) -> list[str]:
    wrong = []
    for name in imports(source):
        top = name.partition(".")[0]
        if top in PACKAGES and top not in MAY_IMPORT[package]:
            wrong.append(f"{path} imports {name}: {package} may import {sorted(MAY_IMPORT[package])} only")
        if top in IMPORTERS and path not in IMPORTERS[top]:
            wrong.append(f"{path} imports {name}: only {sorted(IMPORTERS[top])} may")
    return wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way_and_each_big_library_has_its_importers(package: str) -> None:
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        wrong += violations(package, str(file.relative_to(ROOT)), file.read_text())

    assert wrong == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("monitoring", "from training.registry import Registry"),
        ("monitoring", "import service.settings"),
        ("training", "from service import settings"),
        ("training", "def late():\n    import service.app"),
        ("service", "import evidently"),
        ("service", "from apscheduler.schedulers.background import BackgroundScheduler"),
        ("monitoring", "import bentoml"),
    ],
)
def test_a_forbidden_import_is_seen(package: str, line: str) -> None:
    assert violations(package, f"{package}/new.py", line)


def test_nothing_but_the_packages_is_shipped() -> None:
    assert {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()} <= {*PACKAGES, "tests", "benchmarks"}
