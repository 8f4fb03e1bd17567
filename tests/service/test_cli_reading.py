"""What the command says of a real deployment: its store filled by the real loop, its management API behind a socket."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from rich.cells import cell_len

from service.serving.front import Front
from tests.fronts import nothing_beyond
from tests.places import TOKEN, Place, first, place
from tests.real_server import ROOT
from tests.stand_in import TOKEN as SECRET
from tests.stand_in import listening
from tests.working import working
from training import job
from training.cycle import note_failure, run_cycle, work_off
from training.spec import JobResult, JobSpec
from training.subprocess_job import JobCrashed
from training.trees import is_built

__all__ = ["first", "place"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

READING = ("status", "runs", "runs 1", "models", "drift", "adaptation")


class Deployed(NamedTuple):
    url: str
    place: Place


@pytest.fixture(scope="module")
def deployed(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Runs, oldest first: the bootstrap, 200 checks, a crashed one, one wanted by a person, the training that won."""
    home = tmp_path_factory.mktemp("reading") / "home"
    shutil.copytree(first, home)
    place = Place(home)
    place.answer(60, 1, moved=False)
    said = run_cycle(place.loop)
    for _ in range(199):
        place.now += 60
        checked = {"trigger": said.trigger, "who": said.who, "why": said.why, "version": 1, "record": said.document}
        place.runs.note("check", **checked, now=place.now, token=TOKEN)
    note_failure(place.loop, "check", OSError(28, "No space left on device"))
    place.runs.queue("retrain", trigger="manual", who="ana", why="\x1b[31mnew\nproduct", now=place.now)
    work_off(place.loop)
    place.answer(600, 2, moved=True)
    trained = run_cycle(place.loop)
    assert (trained.kind, trained.outcome, trained.version) == ("retrain", "promoted", 2), trained
    with serving(place, home) as url:
        yield Deployed(url, place)
    place.engine.dispose()


@contextmanager
def serving(place: Place, home: Path) -> Iterator[str]:
    """The address of a worker of this place."""
    with working(place, home) as worker, listening(Front(nothing_beyond, lambda: worker)) as url:
        yield url


def command(url: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command and its environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "COLUMNS"))}
    told = {"EVERGREEN_SECURITY__TOKEN": SECRET, "PYTHONPATH": str(ROOT)}
    return [sys.executable, "-m", "service.command.cli", *arguments, "--url", url], environ | told


def piped(url: str, *arguments: str) -> str:
    program, environ = command(url, *arguments)
    return subprocess.run(program, env=environ, capture_output=True, text=True, check=True, cwd="/").stdout


def in_terminal(url: str, columns: int, *arguments: str) -> list[str]:
    """The lines that the command prints in a terminal of so many columns."""
    program, environ = command(url, *arguments)
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with subprocess.Popen(program, env=environ, stdin=its, stdout=its, stderr=its, cwd="/") as process:
        os.close(its)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # its last end was closed
                break
            if not piece:
                break
            said += piece
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode().replace("\r\n", "\n").splitlines()


@pytest.fixture(scope="module")
def shown(deployed: Deployed) -> dict[tuple[str, int], list[str]]:
    """What each reading command prints in terminals of 80 and of 160 columns."""
    asked = [(what, columns) for what in READING for columns in (80, 160)]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda each: in_terminal(deployed.url, each[1], *each[0].split()), asked)
    return dict(zip(asked, found, strict=True))


@pytest.mark.parametrize("what", READING)
@pytest.mark.parametrize("columns", [80, 160])
def test_nothing_is_wider_than_the_terminal(shown: dict[Any, list[str]], what: str, columns: int) -> None:
    assert [line for line in shown[what, columns] if cell_len(line) > columns] == []
    assert not any("\x1b" in line for line in shown[what, columns])


def test_the_status_begins_with_the_sentence(deployed: Deployed, shown: dict[Any, list[str]]) -> None:
    found = json.loads(piped(deployed.url, "status", "--json"))

    assert found["sentence"].startswith("Version 2 answers since ") and found["champion"] == 2
    assert " ".join(shown["status", 80]).startswith(found["sentence"])
    assert piped(deployed.url, "status").splitlines()[0] == found["sentence"]
    assert "quality not known yet: no check has looked at it" in found["sentence"]
    assert found["served_since"] == deployed.place.registry.served_since()


@pytest.mark.parametrize("columns", [80, 160])
def test_two_hundred_checks_are_one_line(shown: dict[Any, list[str]], columns: int) -> None:
    head, *lines = shown["runs", columns]

    assert head.split() == ["run", "when", "what"] and len(lines) == 5
    assert [int(line.split()[0]) for line in lines] == [204, 203, 202, 201, 1]
    assert "  retrain, quality: promoted, version 2 (quality lost: " in lines[0]
    assert "  retrain by ana: no_action, version 1 (" in lines[1]
    assert "  check: crashed (OSError: [Errno 28] No space left" in lines[2]
    assert re.search(r"  200 checks, (.* )?\d\d:\d\d to \d\d:\d\d: no training \(", lines[3])
    assert "  bootstrap, start: promoted, version 1" in lines[4]


def test_a_wider_terminal_shows_more_of_a_line(shown: dict[Any, list[str]]) -> None:
    narrow, wide = shown["runs", 80][4], shown["runs", 160][4]

    assert narrow.endswith("…") and wide.startswith(narrow[:-1].rstrip()) and len(wide) > len(narrow)


def test_into_a_pipe_lines_are_whole_with_tabs_and_without_colours(deployed: Deployed) -> None:
    head, *lines = (line.split("\t") for line in piped(deployed.url, "runs").splitlines())

    whole = {run.id: run for run in deployed.place.runs.list(limit=1000)}
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [row["run"] for row in rows] == ["204", "203", "202", "201", "1"]
    assert (rows[3]["checks"], rows[3]["why"]) == ("200", whole[201].why)
    assert rows[0]["why"] == whole[204].why and rows[2]["outcome"] == "crashed"
    assert not [cell for line in lines for cell in line if "\x1b" in cell or "…" in cell]


def test_json_has_every_run_by_itself_with_its_record(deployed: Deployed) -> None:
    found = json.loads(piped(deployed.url, "runs", "--limit", "30", "--json"))

    assert [run["id"] for run in found] == list(range(204, 174, -1))
    assert "count" not in found[5] and found[5]["record"]["decision"]["ahead"]["new_rows"] == 60


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("--kind", "retrain"), ["204", "203"]),
        (("--trigger", "manual"), ["203"]),
        (("--kind", "check", "--limit", "1"), ["202"]),
        (("--since", "{after}"), ["204"]),
        (("--since", "10s"), []),
        (("--trigger", "growth"), []),
    ],
)
def test_the_runs_can_be_asked_for_by_kind_trigger_and_time(
    deployed: Deployed, asked: tuple[str, ...], expected: list[str]
) -> None:
    after = str(deployed.place.runs.get(203).created_at + 1)

    found = piped(deployed.url, "runs", *(each.replace("{after}", after) for each in asked)).splitlines()[1:]

    assert [line.split("\t")[0] for line in found] == expected


def test_a_time_that_is_none_is_asked_wrongly(deployed: Deployed) -> None:
    program, environ = command(deployed.url, "runs", "--since", "soon")

    done = subprocess.run(program, env=environ, capture_output=True, text=True)

    assert done.returncode == 2 and "2h" in done.stderr and "'soon'" in done.stderr


def test_one_run_is_a_story_in_which_nobody_s_words_move_the_cursor(deployed: Deployed) -> None:
    trained = piped(deployed.url, "runs", "204").splitlines()
    asked = in_terminal(deployed.url, 80, "runs", "203")

    assert trained[0] == "run 204: retrain, done, promoted, version 2"
    names = [line.split()[0] for line in trained[1:]]
    assert list(dict.fromkeys(names))[:6] == ["asked", "times", "because", "data", "job", "learnt"]
    assert names.count("gates") == len(deployed.place.runs.get(204).document["verdict"]["gates"])
    assert "  asked    manual, by ana: ?[31mnew product" in asked


def test_models_are_a_line_each(shown: dict[Any, list[str]]) -> None:
    for columns in (80, 160):
        head, *lines = shown["models", columns]
        assert head.split()[:4] == ["version", "alias", "created", "origin"]
        assert [line.split()[:2] for line in lines] == [["2", "champion"], ["1", "previous"]]
    engine = "trees" if is_built() else "onnx"
    assert shown["models", 160][1].endswith(f"HistGradientBoostingClassifier, {engine}")


def test_drift_names_each_feature_in_a_line(deployed: Deployed, shown: dict[Any, list[str]]) -> None:
    lines = shown["drift", 80]

    features = lines[next(at for at, line in enumerate(lines) if line.startswith("feature ")) + 1 :]
    assert [line.split()[0] for line in features] == ["income", "debt", "purpose", "prediction"]
    assert " yes " in features[0] and " wasserstein" in features[0]


# What comes of a wish, as an exit code


def crashes(spec: JobSpec) -> JobResult:
    raise JobCrashed("the job was killed", "")


def loses(spec: JobSpec) -> JobResult:
    return msgspec.structs.replace(job.run(spec), passed=False)


@pytest.mark.parametrize(
    ("rows", "run_job", "outcome", "code"),
    [
        (600, job.run, "promoted", 0),
        (600, loses, "kept", 3),
        (20, job.run, "no_action", 3),
        (600, crashes, "crashed", 4),
    ],
)
def test_a_training_that_is_waited_for_exits_by_what_came_of_it(
    place: Place, rows: int, run_job: Callable[[JobSpec], JobResult], outcome: str, code: int
) -> None:
    place.answer(rows, 3, moved=True)
    over = threading.Event()

    def works_off() -> None:
        while not over.wait(0.05):
            work_off(replace(place.loop, run_job=run_job))

    with serving(place, Path(place.engine.url.database or "").parent) as url:
        controller = threading.Thread(target=works_off)
        controller.start()
        program, environ = command(url, "retrain", "--why", "new product", "--wait", "--json")
        done = subprocess.run(program, env=environ, capture_output=True, text=True)
        over.set()
        controller.join()

    assert (json.loads(done.stdout)["outcome"], done.returncode) == (outcome, code), done.stderr


def test_a_training_that_is_not_over_in_time_exits_otherwise(place: Place) -> None:
    with serving(place, Path(place.engine.url.database or "").parent) as url:
        program, environ = command(url, "retrain", "--wait", "--timeout", "0.5")
        done = subprocess.run(program, env=environ, capture_output=True, text=True)

    assert done.returncode == 5
    assert "run 2 is still queued after 0 s; `evergreen runs 2` shows it later" in done.stderr
