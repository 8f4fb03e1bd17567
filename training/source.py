"""The rows of a data source: a file, a folder, a glob, a URL, or a query of a database.

- `rows.parquet`, `rows.csv`, `rows.csv.gz` (also .bz2, .xz, .zip, .zst; .tsv): whatever separates the columns of a CSV
- `rows/` of Parquet files, also partitioned (`year=2026/`), or of CSV files; `rows/2026-*.csv`
- `s3://bucket/rows/*.parquet` and whatever else fsspec opens
- `postgresql://user@host/database SELECT …` and whatever else SQLAlchemy speaks

pandas is imported inside the functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from monitoring.errors import CannotGoOn, first_line

if TYPE_CHECKING:
    import pandas as pd

PARQUET: Final = (".parquet", ".pq")
TEXT: Final = (".csv", ".tsv")
PACKED: Final = (".gz", ".bz2", ".xz", ".zip", ".zst")

_QUERY: Final = re.compile(r"([a-z][a-z0-9+_]*://\S*)\s+((?:select|with|table|values)\b.*)", re.IGNORECASE | re.DOTALL)
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*(::|://)", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(://[^/\s:@]*:)[^@\s]*(?=@)")
_SEPARATORS: Final = ",;\t|"
_HEAD_BYTES: Final = 1 << 16
_COMMA: Final = re.compile(r"-?\d+,\d+")
_POINT: Final = re.compile(r"-?\d+\.\d+")


class DataError(CannotGoOn, ValueError):
    """Raised when data cannot be read, or holds nothing to train on."""


class Dialect(NamedTuple):
    """How a CSV file is written."""

    separator: str
    decimal: str
    encoding: str


def is_path(source: str) -> bool:
    """Whether a source lies on this machine: it is no URL and no query, so a relative one is relative to something."""
    return _URL.match(source) is None


def shown(source: str | Path) -> str:
    """A source as it may stand in messages and logs: without the password in its URL."""
    return _PASSWORD.sub(r"\1***", str(source))


def has_password(source: str) -> bool:
    """Whether a source's URL has a password in it."""
    return shown(source) != source


def load_source(source: str | Path, *, columns: Iterable[str] = ()) -> pd.DataFrame:
    """The rows of a source. `columns` must be among theirs. Raises `DataError` naming the source and what to do."""
    text = str(source)
    said = f"data source {shown(text)}"
    try:
        asked = _QUERY.fullmatch(text)
        frame = _queried(*asked.groups()) if asked else _filed(text, said)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{said} needs a package that is not installed: {error}") from error
    except Exception as error:  # pyarrow, pandas, fsspec and the databases share no class of error
        raise DataError(f"{said} cannot be read ({type(error).__name__}: {shown(first_line(error))})") from error
    if frame.index.name is not None or frame.index.nlevels > 1:
        frame = frame.reset_index()
    if not len(frame):
        raise DataError(f"{said} has no rows")
    if absent := [column for column in columns if column and column not in frame.columns]:
        known = ", ".join(map(str, frame.columns[:40]))
        raise DataError(f"{said} has no column {', '.join(map(repr, absent))}; it has {known}")
    return frame


# -- a query -------------------------------------------------------------------------------------------------------


def _queried(url: str, query: str) -> pd.DataFrame:
    """What the query answers; PostgreSQL is told that it only reads."""
    import pandas as pd
    import sqlalchemy as sa

    where = sa.make_url(url)
    if where.drivername in ("postgresql", "postgres"):
        where = where.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(where, poolclass=sa.NullPool)
    if where.get_backend_name() == "postgresql":
        engine = engine.execution_options(postgresql_readonly=True)
    with engine.connect() as connection:
        return pd.read_sql_query(sa.text(query.replace(":", r"\:")), connection)


# -- files -----------------------------------------------------------------------------------------------------------


def _filed(source: str, said: str) -> pd.DataFrame:
    import fsspec

    files, path = fsspec.core.url_to_fs(source)
    if files.isdir(path):
        return _folder(files, path, said)
    if files.exists(path):
        return _file(files, path, said)
    if not any(letter in path for letter in "*?["):
        raise DataError(f"{said} does not exist: give a file, a folder, a glob, a URL, or a database's URL and a query")
    found = sorted(str(one) for one in files.glob(path) if not files.isdir(one))
    if not found:
        raise DataError(f"{said} matches no file")
    return _together(files, found, said)


def _folder(files: Any, path: str, said: str) -> pd.DataFrame:
    """The rows of all files in a folder and below: Parquet, partitioned or not, or else CSV."""
    inside = sorted(str(one) for one in files.find(path))
    if any(one.lower().endswith(PARQUET) for one in inside):
        import pyarrow.dataset

        wanted = [one for one in inside if one.lower().endswith(PARQUET)]
        found = pyarrow.dataset.dataset(
            wanted, filesystem=files, format="parquet", partitioning="hive", partition_base_dir=path
        )
        frame: pd.DataFrame = found.to_table().to_pandas()
        return frame
    if texts := [one for one in inside if _bare(one).endswith(TEXT)]:
        return _together(files, texts, said)
    raise DataError(f"{said} is a folder without Parquet or CSV files: give one that has them")


def _together(files: Any, paths: list[str], said: str) -> pd.DataFrame:
    """The rows of several files, in the order of their names. Raises `DataError` when their columns differ."""
    import pandas as pd

    frames = [_file(files, path, said) for path in paths]
    first = set(frames[0].columns)
    for path, frame in zip(paths, frames, strict=True):
        if odd := sorted(map(str, first ^ set(frame.columns))):
            names = f"{Path(path).name} and {Path(paths[0]).name}"
            raise DataError(f"{said}: {names} differ in the columns {', '.join(odd[:10])}: name files that are alike")
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


def _file(files: Any, path: str, said: str) -> pd.DataFrame:
    import pandas as pd

    if path.lower().endswith(PARQUET):
        with files.open(path, "rb") as file:
            return pd.read_parquet(file)
    if not _bare(path).endswith(TEXT):
        takes = ", ".join((*PARQUET, *TEXT))
        raise DataError(f"{said} is none of {takes} (with {', '.join(PACKED)} behind it or not): convert or rename it")
    with _unpacked(files, path) as file:
        how = dialect(file.read(_HEAD_BYTES))
    try:
        return _text(files, path, how)
    except UnicodeDecodeError:  # a letter that is no UTF-8 stands behind the head
        return _text(files, path, how._replace(encoding="cp1252"))


def _text(files: Any, path: str, how: Dialect) -> pd.DataFrame:
    import pandas as pd

    with _unpacked(files, path) as file:
        return pd.read_csv(file, sep=how.separator, decimal=how.decimal, encoding=how.encoding, low_memory=False)


def _bare(path: str) -> str:
    """The path in small letters, without what says that it is packed."""
    path = path.lower()
    return next((path.removesuffix(end) for end in PACKED if path.endswith(end)), path)


@contextmanager
def _unpacked(files: Any, path: str) -> Iterator[Any]:
    """The bytes of a file, unpacked by what its name ends with."""
    end = next((end for end in PACKED if path.lower().endswith(end)), "")
    with files.open(path, "rb") as file:
        if end == ".zst":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
                yield stream
        elif end == ".zip":
            from zipfile import ZipFile

            with ZipFile(file) as archive:
                members = [one for one in archive.namelist() if not one.endswith("/") and "__MACOSX" not in one]
                if len(members) != 1:
                    raise DataError(f"data source {path} holds {len(members)} files: pack one file alone")
                with archive.open(members[0]) as member:
                    yield member
        elif end:
            from importlib import import_module

            yield import_module({".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}[end]).open(file, "rb")
        else:
            yield file


def dialect(head: bytes) -> Dialect:
    """How a CSV file that begins with these bytes is written.

    The separator is the one by which the most columns stand alike in every line; a comma in doubt. A decimal comma is
    taken for one where commas do not separate, and no number has a point.

    >>> dialect("name;grams\\nBär;3,5\\n".encode("cp1252"))
    Dialect(separator=';', decimal=',', encoding='cp1252')
    """
    import csv

    encoding = "utf-8-sig"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        cut = len(head) == _HEAD_BYTES and error.start >= len(head) - 3
        encoding = encoding if cut else "cp1252"
        text = head.decode(encoding, errors="replace")
    lines = text.splitlines()[: 50 if len(head) < _HEAD_BYTES else 49]
    best, rows = (0, ","), [[line] for line in lines]
    for separator in _SEPARATORS:
        found = [row for row in csv.reader(lines, delimiter=separator) if row]
        widths = {len(row) for row in found}
        if len(widths) == 1 and (width := widths.pop()) > max(best[0], 1):
            best, rows = (width, separator), found
    fields = [field.strip() for row in rows[1:] for field in row]
    commas = best[1] != "," and any(_COMMA.fullmatch(field) for field in fields)
    return Dialect(best[1], "," if commas and not any(map(_POINT.fullmatch, fields)) else ".", encoding)
