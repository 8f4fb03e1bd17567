"""What the door accepts, every room can take; what was recorded past the door is left out and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.schema import Task
from tests.bodies import through

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # importing bentoml warns

BODIES = 100
"""Accepted ones of each task and store: 600 in all. `make soak` sends 20,000 and more."""


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_whatever_the_door_accepts_every_room_takes(task: Task, store_url: str, tmp_path: Path) -> None:
    found = through(tmp_path / "home", store_url, task, BODIES)

    assert found["accepted"] >= BODIES and found["unfit"] == 0
