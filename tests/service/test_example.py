"""The data set that ships is what it says, and `init` takes it as printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from service.command.cli import app
from service.command.example import TARGET, TIME, ExampleError, write_example
from service.command.init import init


def test_it_is_real_rows_in_the_order_of_time_with_gaps_and_a_label(tmp_path: Path) -> None:
    rows = write_example(tmp_path / "flights.csv")

    frame = pd.read_csv(tmp_path / "flights.csv")
    assert len(frame) == rows == 12_028
    assert frame[TIME].is_monotonic_increasing and (frame[TIME].min()[:10], frame[TIME].max()[:4]) == (
        "2013-01-01",
        "2014",  # the evening of New Year's Eve in UTC
    )
    assert set(frame[TARGET].dropna()) == {0, 1} and frame[TARGET].isna().sum() == 375
    assert frame["built"].isna().any() and frame.select_dtypes("object").shape[1] > 3


def test_init_takes_it_as_printed_and_sees_what_is_known_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["example"])

    assert said.exit_code == 0 and "wrote flights.csv: 12,028 flights from New York" in said.stdout
    next_command = said.stdout.splitlines()[1].removeprefix("next: evergreen ").split()
    done = CliRunner().invoke(app, next_command)
    assert done.exit_code == 0, done.output
    report = init("flights.csv", TARGET, time=TIME, force=True)
    assert (report.task, report.rows, report.without_label) == ("binary", 11_653, 375)
    assert {each.name for each in report.columns if each.use == "left out"} == {"aircraft", "delay_minutes"}


def test_a_file_that_is_there_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "flights.csv"
    path.write_text("mine")

    with pytest.raises(ExampleError, match="exists already: --force replaces it"):
        write_example(path)
    assert path.read_text() == "mine"
    assert write_example(path, force=True) == 12_028
    with pytest.raises(ExampleError, match="cannot write"):
        write_example(path / "below-a-file.csv")
