"""The upgrade from the release before, and the way back, as docs/operating.md has them: run on what 0.1.0 left."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pyarrow as pa
import pytest
from evergreen_client.files.answering import ARROW

from tests.docs.counted import DONE
from tests.docs.pages import DOCS, ROOT, Block, Step, blocks
from tests.docs.reading import Reader
from tests.docs.shapes import difference, same
from tests.real_server import wait_until

DATA: Final = ROOT / "tests" / "data"
PREDICTIONS: Final = 975
"""What 0.1.0 acknowledged (`tests/data/release_0.1.0.md`)."""
BATCH: Final = 400
"""Rows of an Arrow batch, which no release before could read."""


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Those of this checkout, and the one of 0.1.0."""
    made = tmp_path / "wheels"
    build = (sys.executable, "-m", "uv", "build", "-q", "--wheel", "--no-build-isolation", "--python", sys.executable)
    for folder in (ROOT, ROOT / "client"):
        subprocess.run([*build, "-o", made, folder], check=True)
    name = "evergreen-0.1.0-py3-none-any"
    with (
        tarfile.open(DATA / f"{name}.tar.xz") as archive,
        zipfile.ZipFile(made / f"{name}.whl", "w", zipfile.ZIP_DEFLATED) as wheel,
    ):
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                wheel.writestr(member.name, file.read())
    return sorted(made.glob("*.whl"))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """One of its own, with everything that Evergreen needs and no Evergreen."""
    found, given = Path(httpx.__file__).parents[1], tmp_path / "packages"
    given.mkdir()
    for entry in found.iterdir():
        if not entry.name.startswith(("evergreen", "__editable__")):
            (given / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    (packages / "given.pth").write_text(f"{given}\n")
    return tmp_path / "env"


@pytest.fixture
def reader(tmp_path: Path, wheels: list[Path], environment: Path) -> Iterator[Reader]:
    """In the folder where 0.1.0 ran until its machine broke down, with the wheels beside it."""
    here = tmp_path / "shop"
    here.mkdir()
    with tarfile.open(DATA / "release_0.1.0.tar.xz") as archive:
        archive.extractall(here, filter="data")
    live = here / "var" / "live.json"
    live.write_text(live.read_text().replace("/tmp/evergreen-0.1.0", str(here)))
    (here / "evergreen.toml").write_text('[data]\nfirst = "320"\n\n[quality]\nnoise_sigmas = 3.0\n')
    for wheel in wheels:
        shutil.copy(wheel, here)
    environ = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "PYTHONPATH": "", "PIP_NO_INDEX": "1"}
    with Reader(here, environ=environ) as reader:
        assert (
            typed(reader, "pip install -q evergreen-0.1.0-py3-none-any.whl && evergreen --version") == "evergreen 0.1.0"
        )
        yield reader


def typed(reader: Reader, command: str) -> str:
    status, printed = reader.run(Step(command, "", 0))
    assert status == 0, printed
    return printed.strip()


def steps_of(page: Path) -> list[Block]:
    """The blocks of the page that are run here: the upgrade, and the way back."""
    return [block for block in blocks(page) if "tests/docs/test_upgrade.py" in (block.not_run or "")]


def follow(reader: Reader, block: Block) -> None:
    for step in block.steps:
        status, printed = reader.run(step)
        DONE["run"] += 1
        asked = step.answer.count("  NO  ")  # `doctor` fails where the page shows that it does
        assert (status != 0) == bool(asked), f"`{step.command}` ended with {status}:\n{printed}"
        if step.answer:
            DONE["answers"] += 1
            assert same(step.answer, printed), f"`{step.command}`:\n{difference(step.answer, printed)}"


def predictions(reader: Reader) -> int:
    with closing(sqlite3.connect(reader.folder / "var" / "evergreen.db")) as store:
        every, distinct = store.execute("select count(*), count(distinct id) from predictions").fetchone()
    assert every == distinct, "a prediction is there twice"
    return int(every)


def asked(reader: Reader, path: str, **how: Any) -> httpx.Response:
    answer = httpx.post(f"http://127.0.0.1:{reader.port}{path}", trust_env=False, timeout=30, **how)
    assert answer.status_code == 200, answer.text
    return answer


def answer_as_before(reader: Reader) -> None:
    for kept in json.loads((reader.folder / "answers.json").read_text()):
        today = asked(reader, "/predict", json={"records": kept["request"]["records"]}).json()
        assert today["version"] == kept["answer"]["version"] == 2
        assert today["probabilities"] == [pytest.approx(row, abs=1e-6) for row in kept["answer"]["probabilities"]]


def leave_an_arrow_batch_in_the_spool(reader: Reader) -> None:
    """Its controller stands still, a batch is answered, and all processes die at once."""
    assert reader.server is not None
    family = [*psutil.Process(reader.server.pid).children(recursive=True), psutil.Process(reader.server.pid)]
    for process in family:
        if "Controller" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGSTOP)
    (first, *_) = json.loads((reader.folder / "answers.json").read_text())
    batch = pa.RecordBatch.from_pylist(first["request"]["records"] * BATCH)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    asked(reader, "/predict", content=sink.getvalue().to_pybytes(), headers={"content-type": ARROW})
    for process in family:
        process.kill()
    reader.stop()


def test_the_upgrade_and_the_way_back_go_as_the_page_says(reader: Reader) -> None:
    upgrade, back = steps_of(DOCS / "operating.md")

    follow(reader, upgrade)
    wait_until("the drain of what 0.1.0 left", lambda: predictions(reader) == PREDICTIONS)
    answer_as_before(reader)
    answered = sum(len(kept["request"]["records"]) for kept in json.loads((reader.folder / "answers.json").read_text()))
    wait_until("the drain of what was answered", lambda: predictions(reader) == PREDICTIONS + answered)
    leave_an_arrow_batch_in_the_spool(reader)

    follow(reader, back)
    assert typed(reader, "evergreen --version") == "evergreen 0.1.0"
    wait_until("its own drain", lambda: predictions(reader) == PREDICTIONS)
    answer_as_before(reader)
    reader.stop()

    shutil.rmtree(reader.folder / "var")
    (reader.folder / "var-0.2.0").rename(reader.folder / "var")
    assert predictions(reader) == PREDICTIONS + answered + BATCH, "rows of the time between are lost"
