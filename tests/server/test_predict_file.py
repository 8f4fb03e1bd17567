"""`evergreen predict` against a real server: killed twice, the server restarted in between, the disk full."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import sqlalchemy as sa

from monitoring.store import predictions
from tests.files.scorers import rows
from tests.real_server import ROOT, SMALL, Server, wait_until
from tests.server.test_full_disk import fill, small_disk

__all__ = ["small_disk"]  # a fixture

N = 40_000
FEW = 5_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[Path], Path]) -> Iterator[Server]:
    running = Server(
        trained(tmp_path_factory.mktemp("scoring")), **SMALL, SERVE__WORKERS="2", SCHEDULE__CHECK_INTERVAL_S="600"
    )
    try:
        yield running.start().wait_ready()
    finally:
        running.end()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """N rows: at 50 rows a request some seconds of work."""
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    rows(N).to_parquet(path, row_group_size=5_000)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FEW rows."""
    path = tmp_path_factory.mktemp("few") / "few.parquet"
    rows(FEW).to_parquet(path)
    return path


def begin(server: Server, source: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service.command.cli", "predict", str(source), "--out", str(out)]
    command += ["--url", server.url, "--json", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=server.env, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); whatever happens, the process is gone."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def whole(server: Server, source: Path, out: Path, *more: str) -> dict[str, Any]:
    code, said, err = ended(begin(server, source, out, *more))
    assert code == 0, err
    found: dict[str, Any] = json.loads(said)
    return found


def done(out: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads(out.with_name(out.name + ".progress").read_bytes())["rows"])
    return 0


def killed(server: Server, source: Path, out: Path, *more: str) -> int:
    """The rows that the journal has once a run was killed that had come further than it was."""
    before = done(out)
    process = begin(server, source, out, *more)
    try:
        wait_until("progress", lambda: done(out) > before or process.poll() is not None)
        assert process.poll() is None, ended(process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        ended(process)
    return done(out)


def recorded(server: Server, run: str) -> list[str]:
    """The ids of a run in the store."""
    engine = sa.create_engine(server.settings.store_url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(sa.select(predictions.c.id).where(predictions.c.id.like(f"{run}-%"))))
    finally:
        engine.dispose()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_killed_twice_it_goes_on_and_writes_the_same_bytes(
    server: Server, parquet: Path, tmp_path: Path, ending: str
) -> None:
    run = f"twice{ending[1:]}"
    calm, rough = tmp_path / f"calm{ending}", tmp_path / f"rough{ending}"
    options = ("--run", run, "--batch", "50")
    first = whole(server, parquet, calm, *options)

    marks = [killed(server, parquet, rough, *options) for _ in range(2)]
    last = whole(server, parquet, rough, *options)

    assert first["rows"] == last["rows"] == N and first["versions"] == last["versions"] == {"1": N}
    assert 0 < marks[0] < marks[1] < N and last["rows_before"] == marks[1]
    assert rough.read_bytes() == calm.read_bytes()
    wait_until("the drain", lambda: len(set(recorded(server, run))) == N)
    assert set(recorded(server, run)) == {f"{run}-{number}" for number in range(1, N + 1)}


def test_it_waits_for_a_server_that_is_killed_and_comes_back(
    parquet: Path, tmp_path: Path, trained: Callable[[Path], Path]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    server = Server(trained(home), **SMALL, SERVE__WORKERS="1", SCHEDULE__CHECK_INTERVAL_S="600")
    out = tmp_path / "out.parquet"
    try:
        server.start().wait_ready()
        process = begin(server, parquet, out, "--run", "waits", "--batch", "50")
        try:
            wait_until("progress", lambda: done(out) > 0 or process.poll() is not None)
            assert process.poll() is None, ended(process)
            for child in server.children():
                child.kill()
            server.end()
            at = done(out)
            server.start().wait_ready()
        except BaseException:
            process.kill()
            raise
        code, said, err = ended(process)
        assert code == 0, err
        wait_until("the drain", lambda: len(set(recorded(server, "waits"))) == N)
    finally:
        server.end()

    found = pd.read_parquet(out)
    assert at < N and json.loads(said)["rows"] == N
    assert found["id"].tolist() == [f"waits-{number}" for number in range(1, N + 1)]
    assert found["prediction"].notna().all()


def test_the_answers_are_those_of_the_version_offline_and_of_single_requests(
    server: Server, few: Path, tmp_path: Path
) -> None:
    whole(server, few, tmp_path / "served.csv", "--id", "key")
    code, _, err = ended(begin(server, few, tmp_path / "offline.csv", "--id", "key", "--version", "1"))
    assert code == 2 and "no server is asked" in err
    command = [sys.executable, "-m", "service.command.cli", "predict", str(few)]
    command += ["--out", str(tmp_path / "offline.csv"), "--id", "key", "--version", "1"]
    alone = subprocess.run(command, cwd=ROOT, env=server.env, capture_output=True, text=True, check=True)

    assert (tmp_path / "served.csv").read_bytes() == (tmp_path / "offline.csv").read_bytes()
    assert f"rows      {FEW:,}" in alone.stdout and "versions  1 (5,000 rows)" in alone.stdout
    served = pd.read_csv(tmp_path / "served.csv", float_precision="round_trip")
    frame = pd.read_parquet(few).head(3)
    features = list(httpx.get(f"{server.url}/schema").json()["properties"])
    records = json.loads(frame[features].to_json(orient="records", date_format="iso"))
    single = [httpx.post(f"{server.url}/predict", json={"records": [record]}).json() for record in records]
    assert [answer["probabilities"][0][1] for answer in single] == served["probability_1"].head(3).tolist()


def test_what_is_not_to_be_recorded_is_not(server: Server, few: Path, tmp_path: Path) -> None:
    code, said, err = ended(begin(server, few, tmp_path / "out.csv", "--no-record", "--run", "silent"))
    whole(server, few, tmp_path / "other.csv", "--run", "told")
    wait_until("the drain", lambda: len(recorded(server, "told")) == FEW)

    document = httpx.get(f"{server.url}/docs.json").json()
    if "record" in document["components"]["schemas"]["PredictRequest"]["properties"]:
        assert code == 0 and json.loads(said)["rows"] == FEW, err
    else:
        assert code == 1 and "records every answer: leave --no-record out" in err
    assert recorded(server, "silent") == []


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(
    server: Server, few: Path, tmp_path: Path, small_disk: Path
) -> None:
    calm, out = tmp_path / "calm.csv", small_disk / "out.csv"
    whole(server, few, calm, "--run", "full")
    room = small_disk / "room"
    room.write_bytes(bytes(100_000))
    filler = fill(small_disk)
    room.unlink()

    code, _, err = ended(begin(server, few, out, "--run", "full"))

    assert code == 1 and "out.csv.partial cannot be written (No space left on device): make room" in err
    assert not out.exists() and done(out) < FEW
    filler.unlink()
    whole(server, few, out, "--run", "full")
    assert out.read_bytes() == calm.read_bytes()
    assert os.listdir(small_disk) == ["out.csv"]


def test_nobody_there_is_said_and_what_was_answered_stays(server: Server, few: Path, tmp_path: Path) -> None:
    nobody = Server(tmp_path)

    code, _, err = ended(begin(nobody, few, tmp_path / "out.csv", "--retry", "0"))

    assert code == 5 and "no Evergreen answers at" in err
    assert not (tmp_path / "out.csv").exists()
