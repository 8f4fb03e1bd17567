"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = "service.app"
"""The one module that reads the settings when it is imported."""


def modules_with_examples() -> list[str]:
    """Dotted names of the modules of ours whose source holds an example."""
    files = [file for package in ("service", "training", "monitoring") for file in (ROOT / package).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if ">>>" in file.read_text()]
    return sorted(name.removesuffix(".__init__") for name in names if name != APP)


def test_there_are_examples() -> None:
    assert modules_with_examples()


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    found = doctest.testmod(import_module(name))

    assert found.attempted > 0  # an example that no docstring holds is not run
    assert found.failed == 0
