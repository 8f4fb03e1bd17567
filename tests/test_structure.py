"""The direction `service → training → monitoring`, a client that knows none of them, no rings, and one importer for
each big library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
FOLDERS = {
    **{name: ROOT / name for name in ("service", "training", "monitoring")},
    "evergreen_client": ROOT / "client" / "evergreen_client",
}
PACKAGES = tuple(FOLDERS)

MAY_IMPORT = {
    "evergreen_client": {"evergreen_client"},
    "monitoring": {"monitoring"},
    "training": {"training", "monitoring"},
    "service": {*PACKAGES},
}

IMPORTERS = {
    "bentoml": {"service/app.py", "training/registry.py"},
    "evidently": {"monitoring/distance.py", "monitoring/report.py"},
    "apscheduler": {"service/control/scheduler.py"},
    "optuna": {"training/tune.py"},
    "fairlearn": {"training/fairness.py"},
    "distributed": {"training/cluster.py"},
    "skops": {"training/trust.py"},
    "skl2onnx": {"training/convert.py"},
    "fastapi": {
        f"service/serving/management/{name}.py"
        for name in (
            "adaptation",
            "application",
            "loop",
            "managed",
            "models",
            "openapi",
            "replicas",
            "reports",
            "rows",
            "runs",
            "versions",
        )
    },
    "typer": {"service/command/cli.py"},
    "cryptography": {"service/wrapping.py"},
    "prometheus_client": {"monitoring/metrics.py"},
    "onnxruntime": {"training/session.py"},
    "opentelemetry": {"monitoring/traces.py"},
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


def module_of(path: str) -> str:
    """Dotted name of a file of ours."""
    return path.removeprefix("client/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def rings(sources: dict[str, str]) -> list[str]:
    """Modules that import each other, directly or around a corner, as `a → b → a`; all imports count, late ones too."""
    modules = {module_of(path) for path in sources}
    graph = {module_of(path): {n for n in imports(source) if n in modules} for path, source in sources.items()}
    found: list[str] = []
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" → ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module] - {module}):
                walk(other, [*way, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def ours() -> dict[str, str]:
    return {
        str(file.relative_to(ROOT)): file.read_text()
        for folder in FOLDERS.values()
        for file in sorted(folder.rglob("*.py"))
    }


def test_the_files_that_the_tests_begin_with_are_there() -> None:
    assert [file for file in LONGEST if not (ROOT / "tests" / f"{file}.py").exists()] == []


def test_no_two_files_import_each_other_directly_or_in_a_ring() -> None:
    assert rings(ours()) == []


def test_a_ring_is_seen_and_named() -> None:
    planted = {
        "training/a.py": "def late():\n    from training.b import x",
        "training/b.py": "if TYPE_CHECKING:\n    from training import c",
        "training/c.py": "import training.a",
    }

    assert rings(planted) == ["training.a → training.b → training.c → training.a"]
    assert any("monitoring.fits" in ring for ring in rings(ours() | {"monitoring/fits.py": "import monitoring.decode"}))


def test_a_bento_serves_without_the_client_which_it_does_not_hold() -> None:
    sources = {module_of(path): source for path, source in ours().items()}
    reached: set[str] = set()
    ahead = ["service.app", "service.command.serve"]
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += [name for name in imports(sources[module]) if name in sources]

    assert len(reached) > 100 and not any(module.startswith("evergreen_client") for module in reached)


def test_what_answers_and_what_acts_meet_in_files_only() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, source in ours().items()
        for name in imports(source)
        for one, other in (("serving", "control"), ("control", "serving"))
        if path.startswith(f"service/{one}/") and f"{name}.".startswith(f"service.{other}.")
    ]

    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way_and_each_big_library_has_its_importers(package: str) -> None:
    wrong = []
    for file in sorted(FOLDERS[package].rglob("*.py")):
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
        ("training", "from evergreen_client import Client"),
        ("evergreen_client", "from monitoring.errors import EvergreenError"),
        ("evergreen_client", "def late():\n    import service.keys"),
    ],
)
def test_a_forbidden_import_is_seen(package: str, line: str) -> None:
    assert violations(package, f"{package}/new.py", line)


def test_nothing_but_the_packages_is_shipped() -> None:
    assert {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()} <= {*PACKAGES, "tests", "benchmarks"}


ERRORS = {"EvergreenError": "monitoring/errors.py", "EvergreenClientError": "client/evergreen_client/errors.py"}
"""Root of a tree of errors -> the file that draws it."""


def tree_of_errors(root: str) -> dict[str, str]:
    """Name of each error class of ours below this root -> its parent among them."""
    client = ERRORS[root].startswith("client/")
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for path, source in ours().items()
        if path.startswith("client/") == client
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }
    found = {root: ""}
    while True:
        more = {
            name: base for name, parents in bases.items() for base in parents if base in found and name not in found
        }
        if not more:
            return found
        found |= more


@pytest.mark.parametrize("root", ERRORS)
def test_the_tree_of_errors_is_the_one_that_is_drawn(root: str) -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    text = (ROOT / ERRORS[root]).read_text()
    for line in text[text.index(f"\n{root}") :].partition("\n\n")[0].strip("\n").splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        above[depth:] = [name]
        drawn[name] = above[depth - 1] if depth else ""

    assert drawn == tree_of_errors(root)


def test_every_error_of_ours_says_when_it_is_raised() -> None:
    named = {path.startswith("client/"): tree_of_errors(root) for root, path in ERRORS.items()}
    silent = [
        node.name
        for path, source in ours().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and node.name in named[path.startswith("client/")]
        and "Raised" not in (ast.get_docstring(node) or "")
    ]

    assert silent == []
