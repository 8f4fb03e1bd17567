"""Why a worker is not ready is always the true reason, and a server that starts speaks for all its workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.configuration import load
from service.handover import (
    ControllerStatus,
    Live,
    LiveFile,
    LiveVersion,
    WorkerReport,
    read_live,
    write_live,
    write_report,
    write_status,
)
from service.serving.worker import Worker
from tests.artefacts import make_artefact

Start = Callable[[], Worker]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    make_artefact(folder / "1", rows=300, iterations=5)
    return folder / "1"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the first of two workers of a server below `tmp_path`."""
    workers = []
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_SERVE__WORKERS": "2"})
    (tmp_path / "run").mkdir()

    def started() -> Worker:
        worker = Worker(settings, tmp_path / "run", "api-1", record=False)
        worker._look(time.time())
        workers.append(worker)
        return worker

    yield started
    for worker in workers:
        worker.close()


def why(worker: Worker) -> str:
    worker._look(time.time())
    return worker.why_not_ready or ""


def test_without_a_live_file_the_reason_is_what_the_controller_says_or_its_silence(
    start: Start, tmp_path: Path
) -> None:
    worker, now = start(), time.time()

    assert "there is no " in why(worker) and "the controller has not said anything yet" in why(worker)
    write_status(tmp_path / "run", ControllerStatus(at=now, store_error="connection refused"))
    assert "the store does not answer (connection refused)" in why(worker)
    write_status(tmp_path / "run", ControllerStatus(at=now - 99))
    assert "the controller has said nothing for 99 s" in why(worker)
    assert "trained" not in why(worker)


def test_only_the_controller_s_word_says_that_a_first_version_is_trained_or_why_that_failed(
    start: Start, tmp_path: Path
) -> None:
    worker = start()
    write_status(tmp_path / "run", ControllerStatus(at=time.time()))

    write_live(worker.settings.live_file, Live("evergreen"))
    assert "has not said that a first version is being trained" in why(worker)
    for said in ("the first version is being trained from sample", "training the first version ended as refused: few"):
        write_live(worker.settings.live_file, Live("evergreen", bootstrap=said))
        assert why(worker) == f"no model in service yet: {said}; see `evergreen runs`"


def test_a_damaged_live_file_is_named_until_it_is_whole_again(start: Start, tmp_path: Path) -> None:
    worker = start()

    worker.settings.live_file.parent.mkdir(exist_ok=True)
    worker.settings.live_file.write_bytes(b'{"model": "ever')

    assert f"{worker.settings.live_file}, which names the version, is damaged (" in why(worker)
    write_live(worker.settings.live_file, Live("evergreen", bootstrap="at it"))
    assert "damaged" not in why(worker)


def test_a_version_that_does_not_load_or_is_not_here_is_named_with_its_reason(start: Start, tmp_path: Path) -> None:
    worker = start()

    write_live(worker.settings.live_file, Live("evergreen", LiveVersion(3, str(tmp_path / "nowhere"))))
    assert "version 3 does not load: ArtefactError" in why(worker)
    write_live(worker.settings.live_file, Live("evergreen", problem="the artefact of version 4 is not at /x"))
    assert why(worker) == "no model in service: the artefact of version 4 is not at /x"


def test_at_the_first_start_a_worker_is_ready_when_all_are_or_said_why_not_and_later_for_itself(
    start: Start, artefact: Path, tmp_path: Path
) -> None:
    worker, others = start(), tmp_path / "run" / "workers"
    write_live(worker.settings.live_file, Live("evergreen", LiveVersion(1, str(artefact))))

    assert "1 of 2 workers of this server have no version in service yet" in why(worker)
    write_report(others, WorkerReport("api-2", os.getpid(), 0.0))
    assert "1 of 2 workers" in why(worker)
    write_report(others, WorkerReport("api-2", os.getpid(), 0.0, failed={"1": "no memory"}))
    assert why(worker) == ""

    (others / "api-2.json").unlink()  # it was killed
    assert why(worker) == ""
    again = start()  # and this one too, in its turn
    assert why(again) == ""
    (tmp_path / "run" / "stopping").touch()
    assert why(worker).startswith("stopping")


@pytest.mark.parametrize("harm", ["gone", "damaged", "other"])
def test_the_live_file_is_written_again_when_it_is_not_what_it_should_be(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "live.json"
    wanted = Live("evergreen", LiveVersion(2, "/there"))
    file = LiveFile(path)
    file.keep(wanted)
    written = path.stat()
    file.keep(wanted)
    assert path.stat() == written, "what is right already is left alone"

    if harm == "gone":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:20])
    else:
        write_live(path, Live("evergreen", LiveVersion(1, "/there")))
    file.keep(wanted)

    assert read_live(path) == wanted
