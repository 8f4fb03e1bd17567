"""A first version for real servers, trained once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.once import once
from tests.real_server import SMALL, Server


@pytest.fixture(scope="session")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `evergreen train` leaves of the settings `SMALL`."""
    return once(tmp_path_factory, "first-home", _train)


def _train(home: Path) -> None:
    server = Server(home, **SMALL)
    command = [*server.command, "train"]
    done = subprocess.run(command, cwd=server.cwd, env=server.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def trained(first_home: Path) -> Callable[[Path], Path]:
    """Makes an empty folder the home of a server with the settings `SMALL` whose version 1 is trained; returns it."""

    def copied(home: Path) -> Path:
        shutil.copytree(first_home, home, dirs_exist_ok=True)
        for own in ("live.json", "home"):  # what names the folder, and what a home is called: made anew at each start
            (home / "var" / own).unlink()
        return home

    return copied
