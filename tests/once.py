"""What is dear to make and only copied afterwards: made once for all processes of a test run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.secret_file import alone_with


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` filled, an empty one being given to it; the other processes wait until it is there."""
    room = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        room = room.parent
    made, half = room / f"once-{name}", room / f"once-{name}-{os.getpid()}"
    with alone_with(room / f"once-{name}.lock"):
        if not made.exists():
            half.mkdir()
            make(half)
            half.rename(made)
    return made
