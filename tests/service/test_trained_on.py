from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service import sample
from service.command.cli import app
from service.command.first_version import advice
from service.command.trained_on import refuse_the_sample_beside_data, trained_on
from service.configuration import load
from service.settings import SettingsError
from tests.folders import empty_folder
from tests.ports import free_port

__all__ = ["empty_folder"]  # a fixture


def evergreen(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def serve_apart(told: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`evergreen serve` in a process of its own, for it sets up the logging."""
    program = [Path(sys.executable).parent / "evergreen", "serve"]
    return subprocess.run(program, env=os.environ | told, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("command", ["train", "serve"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "data/rows.parquet"])
def test_data_without_a_configuration_are_named_and_the_sample_is_not_taken(
    empty_folder: Path, command: str, name: str
) -> None:
    (empty_folder / "data").mkdir()
    (empty_folder / name).touch()

    result = evergreen(command)

    assert result.exit_code == 2
    assert f"{empty_folder} has no evergreen.toml, but data: {name}. " in result.stderr
    assert f"`evergreen init --data {name} --target COLUMN`" in result.stderr
    assert "EVERGREEN_DATA__SOURCE=sample" in result.stderr
    assert not (empty_folder / "var").exists()


def test_many_files_are_counted(empty_folder: Path) -> None:
    for number in range(8):
        (empty_folder / f"{number}.csv").touch()

    with pytest.raises(SettingsError, match=r"data: 0\.csv, 1\.csv, 2\.csv, 3\.csv, 4\.csv and 3 more\."):
        refuse_the_sample_beside_data(load())


def test_the_sample_is_taken_when_asked_for_or_when_there_is_nothing_else(empty_folder: Path) -> None:
    (empty_folder / "notes.txt").touch()
    refuse_the_sample_beside_data(load())
    (empty_folder / "rows.csv").touch()
    refuse_the_sample_beside_data(load(environ={"EVERGREEN_DATA__SOURCE": "sample"}))
    (empty_folder / "evergreen.toml").write_text("[serve]\nport = 3001\n")
    refuse_the_sample_beside_data(load())


def test_a_service_that_has_a_version_goes_on_beside_data(empty_folder: Path) -> None:
    (empty_folder / "rows.csv").touch()
    (empty_folder / "var").mkdir()
    (empty_folder / "var" / "live.json").touch()
    (empty_folder / "training").mkdir()
    (empty_folder / "training" / "__init__.py").touch()  # what `serve` refuses next

    done = serve_apart({})

    assert done.returncode == 1 and "would shadow evergreen's own package" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('time = "at"\nfirst = "20%"', 'rows in the order of "at", the first 20% of them'),
        ('shuffle = true\nfirst = "500"', "rows shuffled, the first 500 rows of them"),
        ("", "rows as filed"),
    ],
)
def test_what_is_trained_on_is_said_in_words(empty_folder: Path, given: str, said: str) -> None:
    (empty_folder / "evergreen.toml").write_text(f'[data]\nsource = "rows.csv"\ntarget = "y"\n{given}\n')

    assert trained_on(load()) == f'{empty_folder}/rows.csv: predicting "y", {said}'


def test_serve_says_what_it_trains_on(empty_folder: Path) -> None:
    (empty_folder / "a-file").touch()
    told = {"BENTOML_HOME": "a-file", "EVERGREEN_SERVE__PORT": str(free_port())}

    done = serve_apart(told)

    assert done.returncode == 1 and "NotADirectoryError" in done.stderr  # no room for models: no server starts
    assert "trains on the built-in sample stream of loans; `evergreen init` sets" in done.stdout + done.stderr


def test_train_says_what_it_trains_on(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TRAINING__NICE", "0")  # else it waits for all other tests
    sample.training_frame(1500).to_csv("rows.csv", index=False)
    assert evergreen("init", "--data", "rows.csv", "--target", "defaulted", "--time", "applied_at").exit_code == 0

    result = evergreen("train")

    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()[:2]
    assert first == f'training on {empty_folder}/rows.csv: predicting "defaulted", rows in the order of "applied_at"'
    assert second == "version 1: in service"


def test_train_says_what_to_do_when_it_has_learnt_nothing(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = sample.training_frame(600)
    frame["defaulted"] = frame["defaulted"].sample(frac=1, random_state=0).to_numpy()
    frame.to_csv("rows.csv", index=False)
    monkeypatch.setenv("EVERGREEN_TRAINING__NICE", "0")
    assert evergreen("init", "--data", "rows.csv", "--target", "defaulted", "--time", "applied_at").exit_code == 0

    result = evergreen("train")

    assert result.exit_code == 0, result.output
    assert "it has learnt nothing" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: EVERGREEN_TRAINING__TRIALS=20 evergreen train --force, ")


def test_after_a_search_only_other_data_are_advised() -> None:
    assert advice(20).startswith("give it more labelled rows") and "TRIALS" not in advice(20)
