"""A working directory of a test's own, for what reads settings from there and from the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of this test alone, and no setting in the environment.

    Each test of a module that imports it has one.
    """
    for variable in [name for name in os.environ if name.startswith("EVERGREEN_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    return tmp_path
