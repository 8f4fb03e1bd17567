"""The rows of a CSV or Parquet file, of a folder, a glob or an fsspec URL, in their order and in batches of one size.

Memory holds a few batches (of Parquet: one row group), whatever the size of the file. pyarrow and fsspec are imported
inside the functions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from evergreen_client.files.errors import Unreadable

PARQUET: Final = (".parquet", ".pq")
TEXT: Final = (".csv", ".tsv")
PACKED: Final = (".gz", ".bz2", ".xz", ".zip", ".zst")

MISSING: Final = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts of a CSV file that mean that a value is missing: those of `pandas.read_csv`."""

_BLOCK_BYTES: Final = 1 << 20
_PIECE_ROWS: Final = 16_384
_STAMPS: Final = ("ETag", "etag", "mtime", "LastModified", "last_modified", "md5Hash", "generation", "updated")
_PASSWORD: Final = re.compile(r"(://[^/\s:@]*:)[^@\s]*(?=@)")


class Dialect(NamedTuple):
    """How a CSV file is written."""

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"


@dataclass
class Table:
    """The files of a source and their columns. `share` is how much of them has been read, 0 to 1."""

    source: str
    """As it was named, without a password."""
    kind: str
    """csv or parquet."""
    names: tuple[str, ...]
    rows: int | None
    """None where they are not counted without reading all: CSV."""
    fingerprint: list[list[str]]
    """Name, bytes and stamp (time of the last change, or etag) of each file."""
    dialect: Dialect
    share: float = 0.0
    _files: Any = None
    _paths: list[str] = field(default_factory=list)
    _dataset: Any = None

    def batches(self, columns: Sequence[str], rows: int, skip: int = 0) -> Iterator[Any]:
        """Record batches of exactly `rows` rows (the last may have fewer) of these columns, after the first `skip`.

        Columns of a CSV file are texts. Raises `Unreadable`.
        """
        self.require(columns)
        read = self._parquet(columns) if self.kind == "parquet" else self._csv(columns)
        with _said(self.source):
            yield from _of_one_size(read, rows, skip)

    def type_of(self, name: str) -> Any:
        """The Arrow type of a column, without a dictionary."""
        import pyarrow as pa

        if self._dataset is None:
            return pa.string()
        kind = self._dataset.schema.field(name).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def require(self, columns: Iterable[str]) -> None:
        """Raise `Unreadable` naming the first of these columns that is absent."""
        for name in columns:
            if name not in self.names:
                near = get_close_matches(name, self.names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(self.names[:40])}"
                raise Unreadable(f"{self.source} has no column {name!r}{hint}")
            if self.names.count(name) > 1:
                raise Unreadable(f"{self.source} has the column {name!r} twice: rename one of them")

    def _parquet(self, columns: Sequence[str]) -> Iterator[Any]:
        done = 0
        scanner = self._dataset.scanner(
            columns=list(columns),
            batch_size=_PIECE_ROWS,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
            cache_metadata=False,
        )
        for batch in scanner.to_batches():
            done += batch.num_rows
            self.share = done / max(self.rows or 0, 1)
            yield batch

    def _csv(self, columns: Sequence[str]) -> Iterator[Any]:
        sizes = [int(size) for _, size, _ in self.fingerprint]
        before = 0
        for path, size in zip(self._paths, sizes, strict=True):
            with _opened(self._files, path) as (stream, position):
                for batch in _text_reader(stream, self.dialect, columns):
                    self.share = min(1.0, (before + position()) / max(sum(sizes), 1))
                    yield batch
            before += size
            self.share = before / max(sum(sizes), 1)


def open_table(source: str, dialect: Dialect | None = None) -> Table:
    """The rows of a source: its files in the order of their names. Raises `Unreadable`."""
    said = shown(source)
    with _said(said):
        import fsspec

        files, path = fsspec.core.url_to_fs(source)
        if files.isdir(path):
            found, base = sorted(str(one) for one in files.find(path)), path
        elif files.exists(path):
            found, base = [path], path.rpartition("/")[0]
        else:
            found, base = sorted(str(one) for one in files.glob(path) if not files.isdir(one)), path.rpartition("/")[0]
        wanted = [one for one in found if one.lower().endswith(PARQUET)]
        kind = "parquet" if wanted else "csv"
        wanted = wanted or [one for one in found if _bare(one).endswith(TEXT)]
        if not found and not files.isdir(path):
            raise Unreadable(f"{said} does not exist: give a file, a folder, a glob or a URL")
        if not wanted and files.isdir(path):
            raise Unreadable(f"{said} is a folder without Parquet or CSV files: give one that has them")
        if not wanted:
            takes = ", ".join((*PARQUET, *TEXT))
            raise Unreadable(f"{said} is none of {takes} (CSV with {', '.join(PACKED)} behind it or not)")
        fingerprint = [_fingerprint(files, one, base) for one in wanted]
        how = dialect or Dialect()
        if kind == "parquet":
            dataset = _dataset(files, wanted, path if files.isdir(path) else None)
            names, rows = tuple(dataset.schema.names), dataset.count_rows()
        else:
            dataset, rows, names = None, None, ()
            for one in wanted:
                with _opened(files, one) as (stream, _):
                    theirs = tuple(_header(stream, how))
                names = names or theirs
                if odd := sorted(set(names) ^ set(theirs)):
                    raise Unreadable(f"{said}: the files differ in the columns {', '.join(odd[:10])}: name files alike")
    return Table(said, kind, names, rows, fingerprint, how, 0.0, files, wanted, dataset)


def shown(source: str) -> str:
    """A source as it may stand in messages: without the password in its URL."""
    return _PASSWORD.sub(r"\1***", source)


def head_of(source: str, size: int = 1 << 16) -> bytes:
    """The first bytes, unpacked, of the first CSV file of a source; none of Parquet. Raises `Unreadable`."""
    with _said(shown(source)):
        import fsspec

        files, path = fsspec.core.url_to_fs(source)
        found = sorted(files.find(path)) if files.isdir(path) else [path] if files.exists(path) else files.glob(path)
        texts = [one for one in sorted(found) if _bare(one).endswith(TEXT)]
        if not texts or any(one.lower().endswith(PARQUET) for one in found):
            return b""
        with _opened(files, texts[0]) as (stream, _):
            return bytes(stream.read(size))


@contextlib.contextmanager
def _said(source: str) -> Iterator[None]:
    """What pyarrow, fsspec and the unpackers raise, in words that name the source."""
    try:
        yield
    except ImportError as error:
        raise Unreadable(f"{source} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, EOFError, ArithmeticError) as error:  # pyarrow's are of these classes, too
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise Unreadable(f"{source} cannot be read: {shown(text)}") from error


def _fingerprint(files: Any, path: str, base: str) -> list[str]:
    info = files.info(path)
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name) is not None), "")
    return [path.removeprefix(base).lstrip("/"), str(info.get("size") or 0), stamp]


def _dataset(files: Any, paths: list[str], folder: str | None) -> Any:
    """The files as one table, whose columns each of them has."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    # What is read ahead in whole is kept until the end of the file: the memory would grow with it.
    piece_by_piece = ds.ParquetFileFormat(pre_buffer=False, use_buffered_stream=True, buffer_size=_BLOCK_BYTES)
    how: dict[str, Any] = {"filesystem": files, "format": piece_by_piece}
    if folder is not None:
        how |= {"partitioning": "hive", "partition_base_dir": folder}
    found = ds.dataset(paths, **how)
    schemas = [one.physical_schema for one in found.get_fragments()]
    names = set(schemas[0].names)
    for path, schema in zip(paths, schemas, strict=True):
        if odd := sorted(names ^ set(schema.names)):
            raise Unreadable(f"{path} differs from {paths[0]} in the columns {', '.join(odd[:10])}: name files alike")
    partitions = [each for each in found.schema if each.name not in names]
    together = pa.unify_schemas(schemas, promote_options="permissive")
    return ds.dataset(paths, schema=pa.schema([*together, *partitions]), **how)


def _of_one_size(read: Iterator[Any], rows: int, skip: int) -> Iterator[Any]:
    held: list[Any] = []
    have = 0
    for batch in read:
        gone = min(skip, batch.num_rows)
        skip, at = skip - gone, gone
        while at < batch.num_rows:
            part = batch.slice(at, rows - have)
            held.append(part)
            have, at = have + part.num_rows, at + part.num_rows
            if have == rows:
                yield _joined(held)
                held, have = [], 0
    if held:
        yield _joined(held)


def _joined(batches: list[Any]) -> Any:
    import pyarrow as pa

    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


# -- CSV -------------------------------------------------------------------------------------------------------------


def _bare(path: str) -> str:
    """The path in small letters, without what says that it is packed."""
    path = path.lower()
    return next((path.removesuffix(end) for end in PACKED if path.endswith(end)), path)


@contextlib.contextmanager
def _opened(files: Any, path: str) -> Iterator[tuple[Any, Any]]:
    """The bytes of a file, unpacked by what its name ends with; and how many of its own bytes were read by now."""
    end = next((end for end in PACKED if path.lower().endswith(end)), "")
    with files.open(path, "rb") as file:
        if end == ".zst":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
                yield stream, file.tell
        elif end == ".zip":
            from zipfile import ZipFile

            with ZipFile(file) as archive:
                members = [one for one in archive.namelist() if not one.endswith("/") and "__MACOSX" not in one]
                if len(members) != 1:
                    raise Unreadable(f"{path} holds {len(members)} files: pack one file alone")
                with archive.open(members[0]) as member:
                    yield member, file.tell
        elif end:
            from importlib import import_module

            with import_module({".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}[end]).open(file, "rb") as stream:
                yield stream, file.tell
        else:
            yield file, file.tell


def _header(stream: Any, dialect: Dialect) -> list[str]:
    """The names in the first line."""
    import csv
    import io

    text = io.TextIOWrapper(io.BufferedReader(stream) if not hasattr(stream, "read1") else stream, _encoding(dialect))
    try:
        names = next(csv.reader(text, delimiter=dialect.separator), [])
    finally:
        text.detach()
    if not names:
        raise ValueError("it is empty: its first line names the columns")
    return names


def _text_reader(stream: Any, dialect: Dialect, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    if not columns:
        return
    try:
        reader = csv.open_csv(
            stream if isinstance(stream, pa.NativeFile) else pa.PythonFile(stream, mode="r"),
            csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, encoding=dialect.encoding),
            csv.ParseOptions(delimiter=dialect.separator, newlines_in_values=True),
            csv.ConvertOptions(
                column_types={name: pa.string() for name in columns},
                include_columns=list(columns),
                null_values=list(MISSING),
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):  # nothing behind its header
            return
        raise
    yield from reader


def _encoding(dialect: Dialect) -> str:
    return "utf-8-sig" if dialect.encoding.lower() in ("utf-8", "utf8") else dialect.encoding
