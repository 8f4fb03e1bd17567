"""Files of all kinds, folders, globs, URLs and queries become the same rows; what cannot be read is named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from pandas.testing import assert_frame_equal

from training.source import DataError, Dialect, dialect, has_password, is_path, load_source, shown

ROWS = pd.DataFrame(
    {"name": ["Ärmel", "Bär, braun", "C"], "grams": [1.5, 2.25, np.nan], "sold": [1, 0, 1]}, index=range(3)
)
CSV = ROWS.to_csv(index=False).encode()


def zipped(content: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", content)


def zstd(content: bytes, path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


PACKED: dict[str, Callable[[bytes, Path], object]] = {
    "rows.csv": lambda content, path: path.write_bytes(content),
    "rows.CSV.gz": lambda content, path: path.write_bytes(gzip.compress(content)),
    "rows.csv.bz2": lambda content, path: path.write_bytes(bz2.compress(content)),
    "rows.csv.xz": lambda content, path: path.write_bytes(lzma.compress(content)),
    "rows.csv.zip": zipped,
    "rows.csv.zst": zstd,
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_has_the_rows_of_the_file(tmp_path: Path, name: str) -> None:
    PACKED[name](CSV, tmp_path / name)
    assert_frame_equal(load_source(tmp_path / name), ROWS)


@pytest.mark.parametrize(
    ("separator", "decimal", "encoding"),
    [
        (",", ".", "utf-8-sig"),
        (";", ",", "cp1252"),
        ("\t", ".", "utf-8-sig"),
        ("|", ".", "utf-8-sig"),
        (";", ".", "cp1252"),
    ],
)
def test_a_csv_is_read_however_it_is_written(tmp_path: Path, separator: str, decimal: str, encoding: str) -> None:
    ROWS.to_csv(tmp_path / "rows.csv", index=False, sep=separator, decimal=decimal, encoding=encoding)
    assert dialect((tmp_path / "rows.csv").read_bytes()) == Dialect(separator, decimal, encoding)
    assert_frame_equal(load_source(tmp_path / "rows.csv"), ROWS)


def test_a_file_of_one_column_and_a_letter_far_behind_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a\n1\n2\n")
    (tmp_path / "far.csv").write_bytes(b"a,b\n" + b"1,word\n" * 20_000 + "2,Bär\n".encode("cp1252"))
    assert load_source(tmp_path / "one.csv")["a"].tolist() == [1, 2]
    assert load_source(tmp_path / "far.csv")["b"].iloc[-1] == "Bär"


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for month in ("02", "01", "03"):
        ROWS.assign(month=int(month)).to_parquet(tmp_path / f"rows-{month}.parquet")
        ROWS.assign(month=int(month)).to_csv(tmp_path / f"text-{month}.csv", index=False)
    (tmp_path / "notes.txt").write_text("not data")
    assert load_source(tmp_path)["month"].unique().tolist() == [1, 2, 3]
    for pattern in ("rows-*.parquet", "text-*.csv", "text-0[123].csv"):
        assert load_source(str(tmp_path / pattern))["month"].unique().tolist() == [1, 2, 3]
    assert load_source(f"{tmp_path}/text-0[12].csv")["month"].unique().tolist() == [1, 2]


def test_a_partitioned_folder_has_its_partitions_as_columns(tmp_path: Path) -> None:
    for year, place in ((2025, "Bonn"), (2026, "Ulm")):
        folder = tmp_path / f"year={year}" / f"place={place}"
        folder.mkdir(parents=True)
        ROWS.to_parquet(folder / "part.parquet")
    frame = load_source(tmp_path)
    assert frame["year"].tolist() == [2025] * 3 + [2026] * 3
    assert frame["place"].unique().tolist() == ["Bonn", "Ulm"]


def test_what_fsspec_opens_is_read(tmp_path: Path) -> None:
    with fsspec.open("memory://house/rows-1.csv.gz", "wb") as file:
        file.write(gzip.compress(CSV))
    assert_frame_equal(load_source("memory://house/rows-1.csv.gz"), ROWS)
    assert len(load_source("memory://house/rows-*.csv.gz")) == 3
    (tmp_path / "rows.csv").write_bytes(CSV)
    assert_frame_equal(load_source(f"file://{tmp_path}/rows.csv"), ROWS)


def test_a_query_is_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    ROWS.to_sql("sales", sa.create_engine(url), index=False)
    found = load_source(f"{url} SELECT name, grams FROM sales\nWHERE name LIKE 'B%' AND name != ':x'")
    assert found.to_dict("records") == [{"name": "Bär, braun", "grams": 2.25}]


def test_postgresql_is_asked_and_is_told_that_it_is_only_read(postgres_url: str) -> None:
    url = postgres_url.replace("postgresql+psycopg://", "postgresql://")
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    ROWS.to_sql("sales", engine, index=False)
    found = load_source(f"{url} select name, grams, sold from sales where sold = 1 order by grams")
    assert found.fillna(0.0).to_dict("records") == [
        {"name": "Ärmel", "grams": 1.5, "sold": 1},
        {"name": "C", "grams": 0.0, "sold": 1},
    ]
    with pytest.raises(DataError, match="read-only transaction"):
        load_source(f"{url} WITH gone AS (DELETE FROM sales RETURNING *) SELECT * FROM gone")
    with pytest.raises(DataError, match=r"cannot be read .*nowhere"):
        load_source(f"{url} SELECT * FROM nowhere")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing.csv", "does not exist: give a file, a folder, a glob, a URL, or a database's URL and a query"),
        ("no-*.csv", "matches no file"),
        ("empty", "is a folder without Parquet or CSV files"),
        ("rows.xlsx", "is none of .parquet, .pq, .csv, .tsv"),
        ("rows.csv.gz", "cannot be read"),
        ("un*.csv", "differ in the columns a, b: name files that are alike"),
        ("none.csv", "has no rows"),
        ("nothing://x/rows.csv", "Protocol not known|needs a package"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, source: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    (tmp_path / "rows.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "un1.csv").write_text("a\n1\n")
    (tmp_path / "un2.csv").write_text("b\n1\n")
    (tmp_path / "none.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=said):
        load_source(source)


def test_a_password_is_never_told() -> None:
    source = "postgresql://eva:geheim@127.0.0.1:1/shop SELECT 1"
    assert has_password(source) and not has_password("postgresql://eva@host/shop SELECT 1")
    assert shown(source) == "postgresql://eva:***@127.0.0.1:1/shop SELECT 1"
    with pytest.raises(DataError) as caught:
        load_source(source)
    assert "geheim" not in str(caught.value)
    assert "cannot be read" in str(caught.value)


def test_a_path_is_told_from_a_url() -> None:
    assert all(map(is_path, ("a/b.csv", "/a.csv", "a-2026:01.csv")))
    assert not any(map(is_path, ("s3://b/a.csv", "simplecache::s3://b/a", "sqlite:///x SELECT 1")))
