"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from tests.test_structure import module_of, ours

APP = "service.app"
"""The one module that reads the settings when it is imported."""
CLIENT = "evergreen_client"
"""Its example needs a server: `tests/client/test_client.py` has one."""


def modules_with_examples() -> list[str]:
    """Dotted names of the modules of ours whose source holds an example."""
    names = [module_of(path) for path, source in ours().items() if ">>>" in source]
    return sorted(name for name in names if name not in (APP, CLIENT))


def test_there_are_examples() -> None:
    assert modules_with_examples()


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    found = doctest.testmod(import_module(name))

    assert found.attempted > 0  # an example that no docstring holds is not run
    assert found.failed == 0
