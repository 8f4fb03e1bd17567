"""A deployment whose second version learnt from the answers of the first, and is adapted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import Place


@pytest.fixture
def lived(grown: Path, tmp_path: Path) -> Iterator[Place]:
    """In `tmp_path / "home"`: version 2 learnt 660 answers of version 1 beside the source; and gave 450, adapted."""
    shutil.copytree(grown, tmp_path / "home")
    place = Place(tmp_path / "home")
    place.now = 1_700_001_000.0
    place.answer(150, 11, moved=True)
    yield place
    place.engine.dispose()
