"""A worker's front with a real model, record and store behind a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from service.serving.front import Front
from service.serving.worker import Worker
from tests.fronts import nothing_beyond
from tests.places import Place, first, place
from tests.stand_in import listening
from tests.working import working

__all__ = ["first", "place"]  # fixtures


class Served(NamedTuple):
    url: str
    worker: Worker
    place: Place
    front: Front


@pytest.fixture
def served(place: Place, tmp_path: Path) -> Iterator[Served]:
    """The service of a deployment with version 1 (income, debt, purpose; predicts `late`), on loopback."""
    with working(place, tmp_path / "home") as worker:
        front = Front(nothing_beyond, lambda: worker)
        with listening(front) as url:
            yield Served(url, worker, place, front)
