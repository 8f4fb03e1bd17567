"""A run is cut off anywhere and begun again: the output is the one of an undisturbed run. A real version answers."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from evergreen_client.files import Asked, BadRow, CannotResume, FileError, Progress, Unreadable

from monitoring.schema import FeatureSchema
from service import sample
from service.command.predict import Offline
from tests.files.scorers import Killed, killed_after, offline, rows, scored
from tests.wired import artefact
from training.artefact import verify
from training.export import export
from training.loaded import load_model
from training.pipeline import build

__all__ = ["artefact"]  # a fixture

N = 2350


@pytest.fixture(scope="module")
def version(artefact: Path) -> Offline:
    return offline(artefact)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    rows(N).to_parquet(path, row_group_size=500)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows(N).to_csv(path, index=False)
    return path


def asked(out: Path, **more: Any) -> Asked:
    return Asked(out, **{"batch_rows": 100, "run": "r", **more})


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(out.name))


def test_the_answers_are_those_of_the_version_bit_for_bit(
    version: Offline, artefact: Path, parquet: Path, text: Path, tmp_path: Path
) -> None:
    model = load_model(artefact, verify(artefact), version.model.schema)
    expected = model.answer(version.model.schema.canonical(rows(N)))

    for source in (parquet, text):
        for ending in (".csv", ".parquet"):
            out = tmp_path / f"{source.suffix[1:]}{ending}"
            done = scored(version, source, asked(out))
            found = pd.read_csv(out, float_precision="round_trip") if ending == ".csv" else pd.read_parquet(out)

            assert list(found) == ["id", "prediction", "probability_0", "probability_1", "version", "adaptation"]
            assert np.array_equal(found[["probability_0", "probability_1"]].to_numpy(), expected)
            assert found["prediction"].tolist() == (expected[:, 1] > expected[:, 0]).astype(int).tolist()
            assert found["id"].tolist() == [f"r-{number}" for number in range(1, N + 1)]
            assert set(found["version"]) == {1} and found["adaptation"].isna().all()
            assert (done.rows, done.refused, done.versions, done.before) == (N, 0, {1: N}, 0)
            assert left(out) == [out.name]


@pytest.mark.parametrize("target", ["income", "purpose", "owns_home"])
def test_numbers_texts_and_truth_values_are_predicted(tmp_path: Path, target: str) -> None:
    frame = rows(600).drop(columns="key")
    schema = FeatureSchema.infer(frame, target, ignore=[sample.TIME])
    features, labels = schema.canonical(frame), schema.labels(frame[target])
    folder = tmp_path / "1"
    pipeline = build(schema, {"max_iter": 5}, 0).fit(features, labels)
    export(pipeline, schema, folder, check_frame=features.head(50), manifest={"name": "evergreen"})
    rows(600).to_parquet(tmp_path / "rows.parquet")

    for ending in (".csv", ".parquet"):
        scored(offline(folder), tmp_path / "rows.parquet", asked(tmp_path / f"out{ending}"))
    found = pd.read_parquet(tmp_path / "out.parquet")
    text = pd.read_csv(tmp_path / "out.csv", float_precision="round_trip")

    expected = load_model(folder, verify(folder), schema).answer(features)
    words = [str(each).lower() if isinstance(each, bool) else str(each) for each in schema.classes]
    assert list(found) == ["id", "prediction", *(f"probability_{each}" for each in words), "version", "adaptation"]
    answers = found.iloc[:, 2:-2].to_numpy() if schema.classes else found["prediction"].to_numpy()
    assert np.array_equal(answers, expected)
    if schema.classes:
        assert found["prediction"].tolist() == [schema.classes[at] for at in expected.argmax(axis=1)]
    assert text["prediction"].tolist() == found["prediction"].tolist()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("bad", ["stop", "skip"])
def test_a_run_that_is_cut_off_again_and_again_writes_the_same_bytes(
    version: Offline, text: Path, tmp_path: Path, ending: str, bad: Any
) -> None:
    calm, rough = tmp_path / f"calm{ending}", tmp_path / f"rough{ending}"
    if bad == "skip":
        frame = rows(N).astype({"income": object})
        frame.loc[[150, 151, 1700], "income"] = "much"
        frame.to_csv(text, index=False)
    scored(version, text, asked(calm, bad_rows=bad))

    cuts = 0
    while True:
        try:
            done = scored(version, text, asked(rough, bad_rows=bad), on_progress=killed_after(700))
            break
        except Killed:
            cuts += 1
            partial = rough.with_name(rough.name + ".partial")
            with partial.open("ab") as file:  # what a process killed while writing leaves
                file.write(b"half a li")
            assert not rough.exists() and json.loads(journal(rough).read_bytes())["rows"] == 700 * cuts

    assert cuts == 3
    assert rough.read_bytes() == calm.read_bytes()
    assert (done.rows, done.before, done.versions) == (N, 2100, {1: N - (3 if bad == "skip" else 0)})
    names = [".refused.csv"] if bad == "skip" else []
    assert left(rough) == [rough.name + name for name in ["", *names]]
    for name in names:
        assert (tmp_path / f"rough{ending}{name}").read_bytes() == (tmp_path / f"calm{ending}{name}").read_bytes()


def journal(out: Path) -> Path:
    return out.with_name(out.name + ".progress")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_run_that_was_cut_off_at_its_very_end_is_put_in_its_place(
    version: Offline, parquet: Path, tmp_path: Path, ending: str, moved: bool
) -> None:
    out, calm = tmp_path / f"out{ending}", tmp_path / f"calm{ending}"
    scored(version, parquet, asked(calm))
    with pytest.raises(Killed):
        scored(version, parquet, asked(out), on_progress=killed_after(N))
    noted = json.loads(journal(out).read_bytes())
    journal(out).write_text(json.dumps(noted | {"complete": True}))  # the last entry before the output is moved
    if moved:
        shutil.copy(calm, out)
        out.with_name(out.name + ".partial").unlink()

    done = scored(version, parquet, asked(out))

    assert noted["rows"] == N and out.read_bytes() == calm.read_bytes()
    assert (done.rows, done.before, left(out)) == (N, N, [out.name])


def test_rows_that_cannot_be_answered_stop_the_run_or_are_listed(version: Offline, text: Path, tmp_path: Path) -> None:
    frame = rows(N).astype({"income": object})
    frame.loc[1234, "income"] = "much"
    frame.loc[1240, "income"] = 1e39  # the model refuses it, not the reader
    frame.to_csv(text, index=False)
    out = tmp_path / "out.csv"

    with pytest.raises(BadRow, match=r'rows\.csv, row 1,235: income: expected a number, got "much"') as raised:
        scored(version, text, asked(out))
    assert raised.value.row == 1235
    assert json.loads(journal(out).read_bytes())["rows"] == 1200  # what was answered before is kept

    done = scored(version, text, asked(out, bad_rows="skip"))

    assert (done.rows, done.refused, done.before, done.versions) == (N, 2, 1200, {1: N - 2})
    found = pd.read_csv(out)
    assert len(found) == N and found.index[found["prediction"].isna()].tolist() == [1234, 1240]
    assert found["id"].tolist() == [f"r-{number}" for number in range(1, N + 1)]
    assert done.refused_file is not None
    listed = list(csv.reader(done.refused_file.read_text().splitlines()))
    assert [line[:2] for line in listed] == [["row", "id"], ["1235", "r-1235"], ["1241", "r-1241"]]
    assert listed[1][2] == 'income: expected a number, got "much"' and listed[2][2].startswith("income: 1e+39 is too")


def test_ids_come_from_a_column_in_which_each_stands_once(version: Offline, parquet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    scored(version, parquet, asked(out, ids="key", keep=("income", "key")))
    found = pd.read_parquet(out)
    assert found["id"].tolist() == rows(N)["key"].tolist() == found["key"].tolist()
    assert np.array_equal(found["income"], rows(N)["income"], equal_nan=True)
    assert list(found)[:3] == ["id", "income", "key"]

    frame = rows(N)
    frame.loc[2000, "key"] = frame.loc[7, "key"]
    frame.to_parquet(parquet)
    with pytest.raises(Unreadable, match=r'id column \'key\' has "c000007" in row 8 and in row 2,001'):
        scored(version, parquet, asked(tmp_path / "twice.csv", ids="key"))
    assert left(tmp_path / "twice.csv") == []  # found before anything was answered

    frame = rows(N)
    frame.loc[5, "key"] = None
    frame.loc[9, "key"] = "x" * 129
    frame.to_parquet(parquet)
    with pytest.raises(BadRow, match=r"row 6: id column 'key' is empty"):
        scored(version, parquet, asked(tmp_path / "null.csv", ids="key"))
    done = scored(version, parquet, asked(tmp_path / "skip.csv", ids="key", bad_rows="skip"))
    assert done.refused_file is not None
    assert [line[2] for line in csv.reader(done.refused_file.read_text().splitlines())] == [
        "problem",
        "key: the id is missing",
        "id: expected 1 to 128 characters, got 129",
    ]


def test_another_input_or_other_options_are_refused_in_words(version: Offline, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(Killed):
        scored(version, text, asked(out), on_progress=killed_after(300))

    for more, words in (
        ({"ids": "key"}, "begun with ids from none, and now it is key"),
        ({"keep": ("age",)}, "begun with columns kept none, and now it is age"),
        ({"batch_rows": 50}, "begun with batch rows 100, and now it is 50"),
        ({"run": "other"}, "begun as run 'r', not 'other'"),
        ({"record": False}, "begun with recording true, and now it is false"),
    ):
        with pytest.raises(CannotResume, match=words):
            scored(version, text, asked(out, **more))
    with pytest.raises(CannotResume, match=r"answers of version 1, offline, and now it is version 2, offline"):
        scored(Offline(replace(version.model, version=2)), text, asked(out))

    os.utime(text, (1, 1))
    with pytest.raises(CannotResume, match=r"from another state of the input: rows\.csv has been changed"):
        scored(version, text, asked(out))
    assert scored(version, text, asked(out, force=True)).before == 0
    with pytest.raises(CannotResume, match=r"out\.csv exists already: --force replaces it, or name another --out"):
        scored(version, text, asked(out))


def test_two_runs_do_not_write_one_output(version: Offline, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    refused: list[str] = []

    def second(now: Progress) -> None:
        if not refused:
            import threading

            def run() -> None:
                with pytest.raises(CannotResume, match="another process is writing") as raised:
                    scored(version, text, asked(out))
                refused.append(str(raised.value))

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

    assert scored(version, text, asked(out), on_progress=second).rows == N
    assert len(refused) == 1 and len(pd.read_csv(out)) == N


def test_a_file_without_rows_gives_an_output_without_rows(version: Offline, text: Path, tmp_path: Path) -> None:
    rows(0).to_csv(text, index=False)

    assert scored(version, text, asked(tmp_path / "out.csv")).rows == 0
    assert scored(version, text, asked(tmp_path / "out.parquet")).rows == 0

    assert (tmp_path / "out.csv").read_text().strip() == (
        '"id","prediction","probability_0","probability_1","version","adaptation"'
    )
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_what_cannot_be_done_is_said_before_anything_is_answered(version: Offline, text: Path, tmp_path: Path) -> None:
    for more, words in (
        ({"out": tmp_path / "out.txt"}, "expected a name that ends with .csv or .parquet"),
        ({"ids": "kee"}, "has no column 'kee'; did you mean 'key'?"),
        ({"run": "a b"}, "the run id 'a b': expected at most 100 of letters"),
    ):
        with pytest.raises(FileError) as raised:
            scored(version, text, Asked(**{"out": tmp_path / "out.csv", **more}))  # type: ignore[arg-type]
        assert words in str(raised.value)
    rows(5).rename(columns={"income": "incme"}).to_csv(text, index=False)
    with pytest.raises(Unreadable, match=r"has no column 'income'; did you mean 'incme'\?"):
        scored(version, text, asked(tmp_path / "out.csv"))
    rows(5).assign(version=1).to_csv(text, index=False)
    with pytest.raises(FileError, match="would have the column 'version' twice"):
        scored(version, text, asked(tmp_path / "out.csv", keep=("version",)))
    assert left(tmp_path / "out.csv") == []
