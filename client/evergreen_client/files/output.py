"""The answers as a CSV or Parquet file, written piece by piece, that is there whole in the end or not at all.

Pieces go to `OUT.partial`: of a CSV file its own lines, of a Parquet file record batches (Arrow IPC), from which it is
made at the end. So what is on the disk can always be cut off behind a piece, and the finished file depends on the rows
alone, not on how often the run was stopped. pyarrow is imported inside the functions.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, Final

from evergreen_client.files.errors import CannotResume, FileError, no_room
from evergreen_client.files.journal import sync_folder

PARTIAL: Final = ".partial"
REFUSED: Final = ".refused.csv"
CSV: Final = ".csv"
PARQUET: Final = (".parquet", ".pq")

_GROUP_ROWS: Final = 131_072
"""Rows of a row group in a Parquet file, at least."""


class Appended:
    """A file that grows, of which some bytes are known to be good."""

    def __init__(self, path: Path, good: int | None = None) -> None:
        """A new file, or one with `good` bytes of which the rest is cut off.

        Raises `CannotResume`, also while another process writes it.
        """
        self.path = path
        self.size = good or 0
        """Bytes appended, those of before among them."""
        try:
            self._to = os.open(path, os.O_RDWR | (os.O_CREAT if good is None else 0), 0o666)
        except FileNotFoundError:
            raise CannotResume(f"{path} is gone: begin anew with --force") from None
        try:
            fcntl.flock(self._to, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.lseek(self._to, 0, os.SEEK_END)
            if there < self.size:
                raise CannotResume(f"{path} has {there:,} bytes, expected {good:,} or more: begin anew with --force")
            os.ftruncate(self._to, self.size)
            os.lseek(self._to, self.size, os.SEEK_SET)
        except BlockingIOError:
            os.close(self._to)
            raise CannotResume(f"another process is writing {path}: let it end, or stop it") from None
        except BaseException:
            os.close(self._to)
            raise

    def append(self, data: bytes) -> None:
        """Raises `FileError` when the disk is full."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._to, left) :]
        except OSError as error:
            raise no_room(self.path, error) from error
        self.size += len(data)

    def sync(self) -> None:
        """What was appended is on the disk from here on. Raises `FileError` when it is full."""
        try:
            os.fsync(self._to)
        except OSError as error:
            raise no_room(self.path, error) from error

    def close(self) -> None:
        """Another process may write it from here on."""
        os.close(self._to)


def kind_of(out: Path) -> str:
    """csv or parquet, by the suffix. Raises `FileError` for another."""
    suffix = out.suffix.lower()
    if suffix == CSV:
        return "csv"
    if suffix in PARQUET:
        return "parquet"
    raise FileError(f"{out}: expected a name that ends with .csv or .parquet")


def head(kind: str, schema: Any) -> bytes:
    """What the unfinished output begins with."""
    import pyarrow as pa

    if kind == "parquet":
        return bytes(schema.serialize())
    return _lines(pa.RecordBatch.from_pylist([], schema=schema), header=True)


def piece(kind: str, batch: Any) -> bytes:
    """What the unfinished output goes on with for a record batch."""
    return bytes(batch.serialize()) if kind == "parquet" else _lines(batch, header=False)


def finish(kind: str, partial: Path, out: Path) -> None:
    """Make the output from the unfinished one, and put it in its place. Raises `FileError` when the disk is full."""
    if kind == "csv":
        os.replace(partial, out)
    else:
        beside = out.with_name(out.name + ".writing")
        try:
            _to_parquet(partial, beside)
            with beside.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise no_room(out, error) from error
        os.replace(beside, out)
        partial.unlink()
    sync_folder(out.parent)


def _to_parquet(partial: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[Any] = []
    with (
        pa.OSFile(str(partial), "rb") as file,
        pa.ipc.open_stream(file) as pieces,
        pq.ParquetWriter(out, pieces.schema, compression="zstd") as writer,
    ):
        for batch in pieces:
            held.append(batch)
            if sum(map(len, held)) >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(held), row_group_size=2**31)
                held = []
        if held:
            writer.write_table(pa.Table.from_batches(held), row_group_size=2**31)


def _lines(batch: Any, *, header: bool) -> bytes:
    import pyarrow as pa
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    csv.write_csv(batch, sink, csv.WriteOptions(include_header=header))
    return bytes(sink.getvalue())
