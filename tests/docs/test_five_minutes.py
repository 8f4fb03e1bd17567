"""A stranger's five minutes: the script of the documents, in an empty folder, with the wheels that are built here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.ports import free_port

DISTRIBUTIONS = [folder for folder in (ROOT, ROOT / "client") if (folder / "pyproject.toml").exists()]


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    for folder in DISTRIBUTIONS:
        build = [
            sys.executable,
            "-m",
            "uv",
            "build",
            "-q",
            "--wheel",
            "--no-build-isolation",
            "--python",
            sys.executable,
        ]
        subprocess.run([*build, "-o", tmp_path / "wheels", folder], check=True)
    return sorted((tmp_path / "wheels").glob("*.whl"))


def test_a_stranger_serves_labels_looks_and_trains_in_an_empty_folder(wheels: list[Path], tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "PYTHONPATH"))}
    env = kept | {
        "EVERGREEN_SERVE__PORT": str(free_port()),
        "PIP_CONSTRAINT": str(ROOT / "deploy" / "requirements.bento.txt"),  # what was tested, not what is newest today
        "EVERGREEN_TRAINING__NICE": "0",  # on a busy machine a training of low priority takes minutes
        "OMP_NUM_THREADS": "1",
    }

    done = subprocess.run(
        [DOCS / "five-minutes.sh", *wheels], cwd=here, env=env, capture_output=True, text=True, timeout=1200
    )

    assert done.returncode == 0, done.stdout + done.stderr + _log(here)
    said = done.stdout
    assert said.startswith("evergreen 0."), said
    assert '"ids":["flight-1"],"predictions":[' in said and '{"accepted":1}' in said
    assert "version 1: in service" in said and "rows failed    0" in said
    assert re.search(r"^run \d+: retrain, done, (promoted, version 2|kept)", said, re.MULTILINE), said
    assert re.search(r"\tbootstrap\tstart\t.*\tdone\tpromoted\t1\t", said), said


def _log(here: Path) -> str:
    log = here / "server.log"
    return log.read_text()[-3000:] if log.exists() else ""
