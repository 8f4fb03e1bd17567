"""Rows come out of any file in order, in batches of one size."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evergreen_client.files import Dialect, Unreadable, open_table


def frame(n: int, start: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"a": range(start, start + n), "b": [f"text {i}" for i in range(start, start + n)]})


def zipped(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.csv", data)


def zstandard(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(data)


PACKERS: dict[str, Callable[[Path, bytes], object]] = {
    "": Path.write_bytes,
    ".gz": lambda path, data: path.write_bytes(gzip.compress(data)),
    ".bz2": lambda path, data: path.write_bytes(bz2.compress(data)),
    ".xz": lambda path, data: path.write_bytes(lzma.compress(data)),
    ".zst": zstandard,
    ".zip": zipped,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_a_csv_file_comes_in_batches_of_one_size_however_it_is_packed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.csv{ending}"
    PACKERS[ending](path, frame(1000).to_csv(index=False).encode())

    table = open_table(str(path))
    batches = list(table.batches(["b", "a"], 300))

    assert (table.kind, table.names, table.rows) == ("csv", ("a", "b"), None)
    assert [batch.num_rows for batch in batches] == [300, 300, 300, 100]
    assert batches[3].to_pylist()[-1] == {"b": "text 999", "a": "999"}
    assert table.share == 1.0
    assert [b.num_rows for b in open_table(str(path)).batches(["a"], 300, skip=350)] == [300, 300, 50]


def test_a_large_csv_file_is_read_block_by_block(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "".join(f"{number},{'x' * 100}\n" for number in range(100_000)))  # three blocks

    found = list(open_table(str(path)).batches(["a"], 7_000))

    assert [batch.num_rows for batch in found] == [7_000] * 14 + [2_000]
    assert pa.Table.from_batches(found)["a"].to_pylist() == [str(number) for number in range(100_000)]


def test_lines_within_quotes_missing_values_and_other_separators_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffa;b\r\n1,5;"two\nlines"\r\nNA;\r\n;NULL\r\n'.encode())

    (batch,) = open_table(str(path), Dialect(";", ",")).batches(["a", "b"], 10)

    assert batch.to_pydict() == {"a": ["1,5", None, None], "b": ["two\nlines", None, None]}


def test_a_folder_and_a_glob_are_their_files_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    frame(10, 10).to_csv(folder / "b.csv", index=False)
    frame(10, 0).to_csv(folder / "a.csv", index=False)
    (folder / "notes.txt").write_text("no rows")

    for source in (str(folder), f"{folder}/*.csv", f"file://{folder}"):
        table = open_table(source)
        (batch,) = table.batches(["a"], 100)
        assert batch.column(0).to_pylist() == [str(number) for number in range(20)]
        assert [name for name, *_ in table.fingerprint] == ["a.csv", "b.csv"]


def test_a_partitioned_parquet_folder_has_its_partitions_as_columns(tmp_path: Path) -> None:
    for year in (2025, 2026):
        (tmp_path / f"year={year}").mkdir()
        frame(50, year).to_parquet(tmp_path / f"year={year}" / "part.parquet", row_group_size=7)

    table = open_table(str(tmp_path))
    found = pa.Table.from_batches(table.batches(["a", "year"], 30, skip=20))

    assert (table.kind, table.rows) == ("parquet", 100)
    assert found["a"].to_pylist() == [*range(2045, 2075), *range(2026, 2076)]
    assert found["year"].to_pylist() == [2025] * 30 + [2026] * 50


def test_files_whose_numbers_are_of_other_types_are_one_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int64())}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": pa.array([0.5, None], pa.float64())}), tmp_path / "2.parquet")

    (batch,) = open_table(str(tmp_path)).batches(["a"], 10)

    assert batch.column(0).to_pylist() == [1.0, 2.0, 0.5, None]


def test_a_file_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    frame(0).to_parquet(tmp_path / "rows.parquet")

    assert list(open_table(str(tmp_path / "rows.csv")).batches(["a"], 10)) == []
    assert list(open_table(str(tmp_path / "rows.parquet")).batches(["a"], 10)) == []


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="does not exist: give a file, a folder, a glob or a URL"):
        open_table(str(tmp_path / "none.csv"))
    with pytest.raises(Unreadable, match=r"rows\.txt is none of \.parquet, \.pq, \.csv, \.tsv"):
        open_table(write(tmp_path / "rows.txt", "a\n1\n"))
    with pytest.raises(Unreadable, match=r"empty\.csv cannot be read: it is empty: its first line names the columns"):
        open_table(write(tmp_path / "empty.csv", ""))
    with pytest.raises(Unreadable, match=r"broken\.parquet cannot be read: "):
        open_table(write(tmp_path / "broken.parquet", "no Parquet"))
    with pytest.raises(Unreadable, match=r"cut\.csv\.gz cannot be read: "):
        (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(frame(1000).to_csv().encode())[:-500])
        list(open_table(str(tmp_path / "cut.csv.gz")).batches(["a"], 10))
    with pytest.raises(Unreadable, match=r"odd\.csv cannot be read: .*Row #3: Expected 2 columns, got 3"):
        list(open_table(write(tmp_path / "odd.csv", "a,b\n1,2\n1,2,3\n")).batches(["a"], 10))
    with pytest.raises(Unreadable, match=r"has no column 'ages'; did you mean 'age'\?"):
        list(open_table(write(tmp_path / "near.csv", "age,b\n1,2\n")).batches(["ages"], 10))
    with pytest.raises(Unreadable, match="has the column 'a' twice: rename one of them"):
        list(open_table(write(tmp_path / "twice.csv", "a,a\n1,2\n")).batches(["a"], 10))
    with pytest.raises(Unreadable, match=r"latin\.csv cannot be read: .*utf-8"):
        (tmp_path / "latin.csv").write_bytes("a\nBär\n".encode("cp1252"))
        list(open_table(str(tmp_path / "latin.csv")).batches(["a"], 10))
    folder = tmp_path / "two"
    folder.mkdir()
    write(folder / "1.csv", "a,b\n1,2\n")
    write(folder / "2.csv", "a,c\n1,2\n")
    with pytest.raises(Unreadable, match="differ in the columns b, c"):
        open_table(str(folder))


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(Unreadable) as raised:
        open_table("nothing://me:secret@host/rows.csv")

    assert "secret" not in str(raised.value) and "me:***@host" in str(raised.value)
