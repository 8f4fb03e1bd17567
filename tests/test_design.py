"""`docs/design.md` speaks of what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`((?:service|training|monitoring|tests|client)/[\w/]+\.py)(?::([\w.]+))?`")


def defined(path: Path) -> set[str]:
    """Names of the classes, functions and methods in a file, `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{one.name}" for one in methods}
    return found


def strangers(text: str) -> list[str]:
    """What the text names that is not there."""
    wrong = []
    for file, name in NAMED.findall(text):
        path = ROOT / file
        if not path.is_file() or (name and name not in defined(path)):
            wrong.append(f"{file}:{name}")
    return wrong


def test_each_file_and_function_that_the_design_names_exists() -> None:
    text = " ".join((ROOT / "docs" / "design.md").read_text().split())

    assert len(NAMED.findall(text)) > 25
    assert strangers(text) == []


def test_a_name_that_is_not_there_is_seen() -> None:
    assert strangers("`service/serving/answer.py:Lane.nothing` and `service/nowhere.py`") == [
        "service/serving/answer.py:Lane.nothing",
        "service/nowhere.py:",
    ]
