"""`evergreen predict` as it is typed, of a version of a real registry; no server runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from monitoring.store import open_store
from service.command.cli import app
from service.command.predict import beside
from service.configuration import load
from tests.files.scorers import rows
from tests.folders import empty_folder
from tests.wired import artefact
from training.lease import CONTROLLER, Lease
from training.registry import Registry

__all__ = ["artefact", "empty_folder"]  # fixtures

N = 300


def evergreen(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.fixture
def home(tmp_path: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment with the artefact as its version 1, and `customers.csv` in the working directory."""
    found = tmp_path / "home"
    monkeypatch.setenv("EVERGREEN_HOME", str(found))
    settings = load(environ={"EVERGREEN_HOME": str(found)})
    engine = open_store(settings.store_url)
    assert Lease(engine, CONTROLLER, "test", 600).acquire()
    versions = Registry(engine, settings.models_dir, settings.model.name)
    assert versions.register(artefact, origin="bootstrap", now=1.0, token=1) == 1
    engine.dispose()
    rows(N).to_csv("customers.csv", index=False)
    return found


def test_answers_go_beside_the_file_with_a_summary(home: Path) -> None:
    done = evergreen("customers.csv", "--version", 1, "--id", "key", "--keep", "income,age")

    assert done.exit_code == 0, done.output
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said["rows"] == "300" and said["refused"] == "0" and said["versions"] == "1 (300 rows)"
    assert said["output"] == "customers.predictions.csv" and said["took"].endswith(" rows/s")
    found = pd.read_csv("customers.predictions.csv")
    assert list(found)[:4] == ["id", "income", "age", "prediction"] and len(found) == N
    assert Path("customers.predictions.csv").stat().st_mode & 0o044 == 0o044  # a file of the user's own

    again = evergreen("customers.csv", "--version", 1)
    assert (again.exit_code, "exists already: --force replaces it" in again.stderr) == (1, True)


def test_for_machines_it_is_json_and_quiet_is_quiet(home: Path) -> None:
    done = evergreen("customers.csv", "--version", 1, "--json", "--run", "r1", "--out", "a.parquet")
    quiet = evergreen("customers.csv", "--version", 1, "--quiet", "--out", "b.csv")

    said = json.loads(done.stdout)
    assert {name: said[name] for name in ("out", "run", "rows", "rows_before", "refused", "versions")} == {
        "out": "a.parquet",
        "run": "r1",
        "rows": N,
        "rows_before": 0,
        "refused": 0,
        "versions": {"1": N},
    }
    assert pd.read_parquet("a.parquet")["id"].tolist() == [f"r1-{number}" for number in range(1, N + 1)]
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_csv_file_of_another_country_is_read_as_training_reads_it(home: Path) -> None:
    frame = rows(N)
    frame["note"] = "Bär; naïve"
    frame.to_csv("andere.csv", sep=";", decimal=",", index=False, encoding="cp1252")
    for name in ("customers", "andere"):
        assert evergreen(f"{name}.csv", "--version", 1, "--run", "r", "--quiet").exit_code == 0

    assert Path("andere.predictions.csv").read_bytes() == Path("customers.predictions.csv").read_bytes()


def test_a_bad_row_is_said_with_its_number_and_what_to_do(home: Path) -> None:
    frame = rows(N).astype({"age": object})
    frame.loc[41, "age"] = "old"
    frame.to_csv("customers.csv", index=False)

    stopped = evergreen("customers.csv", "--version", 1)
    skipped = evergreen("customers.csv", "--version", 1, "--bad-rows", "skip")

    assert stopped.exit_code == 1
    assert 'evergreen: customers.csv, row 42: age: expected a number, got "old"' in stopped.stderr
    assert "--bad-rows skip" in stopped.stderr
    assert skipped.exit_code == 0
    assert "1, listed in customers.predictions.csv.refused.csv" in skipped.stdout


def test_what_is_asked_wrongly_is_said(home: Path) -> None:
    Path("none").mkdir()
    for arguments, code, words in (
        (["customers.csv", "--version", 1, "--url", "http://localhost:1"], 2, "no server is asked"),
        (["customers.csv", "--version", 1, "--no-record"], 2, "no server is asked and nothing is recorded"),
        (["customers.csv", "--version", 7], 1, "the model 'evergreen' has no version 7; there are 1"),
        (["customers.csv", "--version", 1, "--out", "answers.txt"], 1, "ends with .csv or .parquet"),
        (["*.csv", "--version", 1], 2, "--out: say where the answers to *.csv go"),
        (["other.csv", "--version", 1], 1, "other.csv does not exist"),
        (["none", "--version", 1], 1, "none is a folder without Parquet or CSV files"),
    ):
        done = evergreen(*map(str, arguments))
        assert (done.exit_code, words in done.stderr) == (code, True), done.output
    shutil.rmtree(home)
    missing = evergreen("customers.csv", "--version", 1)
    assert missing.exit_code == 1 and "there is no store at" in missing.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("customers.csv", "customers.predictions.csv"),
        ("data/rows.csv.gz", "data/rows.predictions.csv"),
        ("data/rows/", "data/rows.predictions.csv"),
        ("s3://bucket/day/rows.parquet", "rows.predictions.csv"),
    ],
)
def test_where_the_output_goes_when_it_is_not_said(home: Path, source: str, expected: str) -> None:
    from evergreen_client.files import open_table

    assert str(beside(source, open_table("customers.csv"))) == expected
