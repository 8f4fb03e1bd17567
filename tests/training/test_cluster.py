"""Trials on a real Dask cluster: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from tests.processes import python
from tests.training.test_search import job
from tests.world import history
from training.artefact import verify
from training.data import snapshot
from training.job import run
from training.spec import JobResult, JobSpec
from training.split import TrainPolicy
from training.subprocess_job import subprocess_job

WAIT = """
import sys
from distributed import Client
client = Client(sys.argv[1], timeout=180)
for many in sys.stdin:
    client.wait_for_workers(int(many), timeout=180)
    print("there", flush=True)
"""


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, Callable[[int], None]]]:
    """The address of a scheduler, and a call after which it has so many workers; all end with the block."""
    file, workers = folder / "scheduler.json", 0
    with ExitStack() as ending:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}

        def start(program: str, *arguments: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", "--host", "127.0.0.1"]
            process = subprocess.Popen([*command, "--scheduler-file", str(file), *arguments], **quiet)
            ending.callback(process.wait)
            ending.callback(process.terminate)

        def grow(to: int) -> None:
            nonlocal workers
            for number in range(workers, to):
                start("dask_worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder / str(number)))
            workers = to
            assert waiting.stdin is not None and waiting.stdout is not None
            waiting.stdin.write(f"{to}\n")
            waiting.stdin.flush()
            assert waiting.stdout.readline() == "there\n"

        start("dask_scheduler", "--port", "0")
        until = time.monotonic() + 180
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        address = msgspec.json.decode(file.read_bytes())["address"]
        waiting = ending.enter_context(python(WAIT, address))
        yield address, grow


def searching(folder: Path, name: str, **training: Any) -> JobSpec:
    schema, frame = history(600, 0)
    given = {"trials": 8, "families": ["linear"], **training}
    out = folder / name / "artefact"
    linear = {"family": "linear", "penalty": 5.0}
    return job(schema, snapshot(frame, folder), out, training=given, parameters=linear)


def found_by(spec: JobSpec, result: JobResult) -> tuple[dict[str, Any], Any]:
    assert result.ok, result.error
    manifest = verify(Path(spec.out))
    assert "tcp://" not in msgspec.json.encode(manifest.document).decode()
    return manifest.parameters, manifest.data.trials


def test_one_worker_three_workers_and_none_find_the_same(tmp_path: Path) -> None:
    spec = searching(tmp_path, "none")
    found = [found_by(spec, run(spec))]
    with cluster(tmp_path) as (address, grow):
        spec = searching(tmp_path, "no-worker", backend="dask", scheduler_address=address)
        missing = subprocess_job(spec, timeout_s=240)
        assert missing.error == f"the Dask scheduler at {address} has no worker: start `dask worker {address}`"
        for workers in (1, 3):
            grow(workers)
            spec = searching(tmp_path, f"with-{workers}", backend="dask", scheduler_address=address)
            found.append(found_by(spec, subprocess_job(spec, timeout_s=240)))
    assert len(found[0][1]) == 8
    assert found[0] == found[1] == found[2]


def test_a_scheduler_that_is_not_there_is_told_with_its_address(tmp_path: Path) -> None:
    result = subprocess_job(
        searching(tmp_path, "gone", backend="dask", scheduler_address="tcp://127.0.0.1:9"), timeout_s=240
    )
    assert result.error is not None
    assert result.error.startswith("the Dask scheduler at tcp://127.0.0.1:9 does not answer: ")


def test_a_cluster_needs_an_address() -> None:
    with pytest.raises(ValidationError, match="needs `scheduler_address`, such as tcp://host:8786"):
        TrainPolicy(backend="dask")
