"""The record as Parquet for those who train elsewhere: `day=2026-11-23/part-0.parquet`, to any fsspec URL.

Columns as `read_window` gives them: the canonical features, `_id`, `_at`, `_version`, `_adaptation` (null when none was
in force), `_prediction`, `_score`, `_label`, `_observed_at`, `_source`, and `_probabilities` for a multiclass task; a
label joins the newest prediction with its id. Days are UTC days of the answer. `pandas.read_parquet(folder)` reads all
of it, `day` as one more column.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.errors import CannotGoOn
from monitoring.feature import (
    ADAPTATION,
    AT,
    ID,
    LABEL,
    OBSERVED_AT,
    PREDICTED,
    PROBABILITIES,
    SCORE,
    SOURCE,
    VERSION,
)
from monitoring.files import replacing
from monitoring.retention import DAY_S
from monitoring.schema import FeatureSchema
from monitoring.window import iter_window

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa

FILE_NAME: Final = "part-0.parquet"
_LOCK_POLL_S: Final = 0.25
_LOCK: Final = 4702742
"""Advisory lock of whoever writes exports on PostgreSQL."""


class Exported(msgspec.Struct, frozen=True):
    """What one export wrote."""

    rows: int
    labelled: int
    skipped: int
    """Rows of another version that the schema cannot read."""
    files: tuple[str, ...]
    """Paths below the target, oldest day first."""


def export(
    engine: sa.Engine,
    schema: FeatureSchema,
    target: str,
    *,
    since: float | None = None,
    until: float | None = None,
    version: int | None = None,
    chunk_rows: int = 20_000,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Exported:
    """Write the rows with `since` <= answered < `until` (seconds since 1970 UTC) below the folder or URL `target`.

    One file a day, replaced whole when it is there, and only once it is complete. A day cut by `since` or `until`
    therefore holds only its part: export whole days to keep a folder up to date. Memory holds `chunk_rows` rows.
    `on_rows` hears how many rows are written so far. Raises what the file system raises.
    """
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(target)
    rows = labelled = skipped = 0
    files: list[str] = []
    with contextlib.ExitStack() as stack:
        day, writer = "", None
        for chunk in iter_window(engine, schema, since=since, until=until, version=version, chunk_rows=chunk_rows):
            skipped += int(chunk.attrs["skipped"])
            for name, part in _by_day(chunk):
                if writer is None or name != day:
                    stack.close()  # commits the day before
                    path = f"day={name}/{FILE_NAME}"
                    writer = stack.enter_context(_writer(filesystem, f"{root.rstrip('/')}/{path}", schema))
                    day = name
                    files.append(path)
                writer.write_table(_table(part, schema))
                rows += len(part)
                labelled += int(part[LABEL].notna().sum())
                on_rows(rows)
    return Exported(rows, labelled, skipped, tuple(files))


def _by_day(chunk: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each UTC day, in order; `chunk` is in order of time."""
    for number, part in chunk.groupby((chunk[AT] // DAY_S).astype("int64"), sort=True):
        yield datetime.fromtimestamp(int(str(number)) * DAY_S, UTC).strftime("%Y-%m-%d"), part


@contextlib.contextmanager
def _writer(filesystem: Any, path: str, schema: FeatureSchema) -> Iterator[Any]:
    """A Parquet writer whose file appears at `path` when the block ends well, and not at all otherwise."""
    import pyarrow.parquet as pq

    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    with whole_file(filesystem, path) as file, pq.ParquetWriter(file, _arrow_schema(schema)) as writer:
        yield writer


@contextlib.contextmanager
def whole_file(filesystem: Any, path: str) -> Iterator[Any]:
    """A file to write that takes the place of `path` when the block ends well; nothing changes otherwise.

    On a local disk it lies beside `path` meanwhile (fsspec's own transactions move it there from /tmp, which is a copy
    where that is another file system); an object store shows an upload once it is complete.
    """
    if "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol):
        with replacing(Path(path)) as beside, beside.open("wb") as file:
            yield file
        return
    file = filesystem.open(path, "wb", autocommit=False)
    try:
        yield file
        file.close()
    except BaseException:
        with contextlib.suppress(Exception):
            file.close()
        file.discard()
        raise
    file.commit()


def expire_exports(target: str, before: float) -> int:
    """Delete the exported days that end before `before` (seconds since 1970 UTC); how many."""
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(target)
    gone = 0
    for folder in sorted(filesystem.glob(f"{root.rstrip('/')}/day=*")):
        with contextlib.suppress(ValueError):
            day = datetime.strptime(folder.rpartition("day=")[2].strip("/"), "%Y-%m-%d").replace(tzinfo=UTC)
            if day.timestamp() + DAY_S <= before:
                filesystem.rm(folder, recursive=True)
                gone += 1
    return gone


class ExportsBusy(CannotGoOn, RuntimeError):
    """Raised when an export or an erasure does not end."""

    def __init__(self, what: str, waited_s: float) -> None:
        super().__init__(
            f"an export or an erasure has been at work for more than {waited_s:.0f} s ({what} is locked): "
            "let it end, or stop it, then ask again"
        )


@contextlib.contextmanager
def locked(
    path: Path, engine: sa.Engine, *, wait_s: float = 60.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Wait until nobody else writes exports, and keep others waiting meanwhile. Raises `ExportsBusy`.

    On this host by a file, on all of them by a lock of PostgreSQL, which ends with the connection.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        for _ in range(max(1, int(wait_s / _LOCK_POLL_S))):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            sleep(_LOCK_POLL_S)
        else:
            raise ExportsBusy(str(path), wait_s)
        with _locked_in_store(engine, wait_s, sleep):
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked_in_store(engine: sa.Engine, wait_s: float, sleep: Callable[[float], None]) -> Iterator[None]:
    import sqlalchemy as sa

    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        # A host that vanishes without a word would keep it for hours otherwise.
        connection.execute(sa.text("set tcp_keepalives_idle = 15; set tcp_keepalives_interval = 5"))
        for _ in range(max(1, int(wait_s / _LOCK_POLL_S))):
            if connection.scalar(sa.text(f"select pg_try_advisory_lock({_LOCK})")):
                break
            sleep(_LOCK_POLL_S)
        else:
            raise ExportsBusy("the store", wait_s)
        try:
            yield
        finally:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # it is gone with its connection
                connection.execute(sa.text(f"select pg_advisory_unlock({_LOCK})"))


def _arrow_schema(schema: FeatureSchema) -> Any:
    """The same columns and types for every file, whatever is missing in it."""
    import pyarrow as pa

    kind = type(schema.classes[0]) if schema.classes else float
    answer = {bool: pa.bool_(), int: pa.int64(), str: pa.string(), float: pa.float64()}[kind]
    features = [(name, pa.float32() if name in schema.numeric_names else pa.string()) for name in schema.names]
    extra = [
        (ID, pa.string()),
        (AT, pa.float64()),
        (VERSION, pa.int64()),
        (ADAPTATION, pa.int64()),
        (PREDICTED, answer),
        (SCORE, pa.float64()),
        (LABEL, answer),
        (OBSERVED_AT, pa.float64()),
        (SOURCE, pa.string()),
    ]
    if schema.task == "multiclass":
        extra.append((PROBABILITIES, pa.list_(pa.float64())))
    return pa.schema(features + extra)


def _table(part: pd.DataFrame, schema: FeatureSchema) -> Any:
    import pyarrow as pa

    fields = _arrow_schema(schema)
    columns = [pa.array(part[field.name].tolist(), field.type, from_pandas=True) for field in fields]
    return pa.Table.from_arrays(columns, schema=fields)
