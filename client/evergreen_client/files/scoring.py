"""A file in, its answers out: in the order of its rows, each row once, also when the run is killed and begun again.

The rows are cut into batches whose borders depend on the file alone. Several are under way at a time; their answers are
written in order, and a journal beside the output says how far it is good. A run that is begun again goes on there and
sends the rows that were under way once more under the same ids.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import evergreen_client.files.journal as journals
import evergreen_client.files.output as output
import evergreen_client.files.values as values
from evergreen_client.answers import Wanted
from evergreen_client.files.answering import Answer, Answerer, RowRefused
from evergreen_client.files.errors import BadRow, CannotResume, FileError
from evergreen_client.files.reading import Table
from evergreen_client.files.unique import check_ids

BadRows = Literal["stop", "skip"]

COMMIT_S: Final = 1.0
"""Seconds between two entries of the journal: what was answered since is answered again after a kill."""

_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REFUSED_HEAD: Final = ("row", "id", "problem")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    rows: int
    """Done, those of before the run was interrupted among them."""
    new: int
    """Done by this process."""
    of: int | None
    """Rows of the input; None while they are not known."""
    share: float
    """Of the input that was read, 0 to 1."""
    refused: int
    versions: Mapping[int, int]
    seconds: float
    """Of this process."""

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at the pace of this process; None while nobody knows."""
        if self.of is not None:
            return (self.of - self.rows) * self.seconds / self.new if self.new else None
        return (1 - self.share) * self.seconds / self.share if self.share and self.new == self.rows else None


@dataclass(frozen=True, slots=True)
class Scored:
    """What a run did."""

    out: Path
    run: str
    """What made ids begin with; "" when they come from a column."""
    rows: int
    refused: int
    versions: Mapping[int, int]
    """Rows that each version answered."""
    before: int
    """Rows that were done already when this process began."""
    seconds: float
    """Of this process."""
    refused_file: Path | None = None

    @property
    def rows_per_second(self) -> float:
        """Of this process."""
        return (self.rows - self.before) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """How a file is to be scored.

    `ids`: column of the ids; "": they are made. `keep`: columns of the input that the output has, too. `bad_rows`:
    what happens when a row cannot be answered. `batch_rows`: rows a request, 0: chosen. `run`: what made ids begin
    with, "": chosen. `force`: replace the output, and whatever a run left there that was not finished.
    """

    out: Path
    ids: str = ""
    keep: tuple[str, ...] = ()
    bad_rows: BadRows = "stop"
    batch_rows: int = 0
    connections: int = 4
    run: str = ""
    record: bool = True
    force: bool = False


async def score(
    table: Table, answerer: Answerer, asked: Asked, on_progress: Callable[[Progress], None] | None = None
) -> Scored:
    """Score every row of `table`; `on_progress` is called after each batch.

    Raises a `FileError`, and what the answerer raises. All that was answered before stays, and the same call goes on
    behind it.
    """
    wanted = await answerer.wanted()
    run = await asyncio.to_thread(_begin, table, answerer, asked, wanted)
    if isinstance(run, Scored):
        return run
    return await run.go(on_progress)


class _Batch(NamedTuple):
    """Rows ready to be sent; `first` is the number of the first one, from 1."""

    first: int
    rows: int
    ids: list[Any]
    columns: dict[str, Any]
    kept: list[Any]
    faults: dict[int, str]
    share: float


def _begin(table: Table, answerer: Answerer, asked: Asked, wanted: Wanted) -> _Run | Scored:
    """A run at its beginning, or where it was; or its result, when it had only to be put in its place."""
    kind = output.kind_of(asked.out)
    table.require([*wanted.kinds, *([asked.ids] if asked.ids else []), *asked.keep])
    shape = _schema(table, asked, wanted)
    if asked.run and not _RUN.fullmatch(asked.run):
        raise FileError(f"the run id {asked.run!r}: expected at most 100 of letters, digits, '.', '_' and '-'")
    before = None if asked.force else journals.read(asked.out)
    now = journals.Journal(
        run=asked.run,
        input=table.fingerprint,
        columns=list(table.names),
        settings={
            "answers of": answerer.name,
            "features": sorted(f"{name} ({what})" for name, what in wanted.kinds.items()),
            "classes": [str(each) for each in wanted.classes],
            "ids from": asked.ids,
            "columns kept": list(asked.keep),
            "recording": asked.record,
            "batch rows": asked.batch_rows or (before and before.settings["batch rows"]) or answerer.batch_rows(wanted),
            "CSV as": list(table.dialect),
        },
    )
    partial = asked.out.with_name(asked.out.name + output.PARTIAL)
    if before is None:
        if asked.out.exists() and not asked.force:
            raise CannotResume(f"{asked.out} exists already: --force replaces it, or name another --out")
        now.run = asked.run or f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        if asked.ids:
            check_ids(table, asked.ids, nulls=asked.bad_rows == "skip")
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        found = output.Appended(partial)
        try:
            journals.path_of(asked.out).unlink(missing_ok=True)
            _refused_path(asked.out).unlink(missing_ok=True)
            found.append(output.head(kind, shape))
            found.sync()
            now.bytes = found.size
            journals.write(asked.out, now)  # before the first row is sent: its id must not change any more
        except BaseException:
            found.close()
            raise
        return _Run(table, answerer, asked, wanted, kind, shape, now, found)
    journals.check(asked.out, before, now)
    if before.complete and not partial.exists() and asked.out.exists():  # killed before its very last step
        run = _Run(table, answerer, asked, wanted, kind, shape, before, None)
        journals.path_of(asked.out).unlink()
        return run.result()
    return _Run(table, answerer, asked, wanted, kind, shape, before, output.Appended(partial, before.bytes))


class _Run:
    def __init__(
        self,
        table: Table,
        answerer: Answerer,
        asked: Asked,
        wanted: Wanted,
        kind: str,
        shape: Any,
        journal: journals.Journal,
        found: output.Appended | None,
    ) -> None:
        self.table, self.answerer, self.asked, self.wanted = table, answerer, asked, wanted
        self.kind, self.shape, self.journal, self.output = kind, shape, journal, found
        self.batch_rows: int = journal.settings["batch rows"]
        self.before = journal.rows
        self.began = time.monotonic()
        self.committed = self.began
        self.good = (journal.bytes, journal.refused_bytes)
        """Bytes of the output, and of the list of refused rows, that hold whole batches."""
        self.lock = threading.RLock()
        """Held by the thread that writes; whoever stops the run waits for it."""
        self.list: output.Appended | None = None
        self.gate = asyncio.Semaphore(asked.connections)

    async def go(self, on_progress: Callable[[Progress], None] | None) -> Scored:
        """Answer what is left, and put the output in its place."""
        assert self.output is not None
        try:
            if not self.journal.complete:
                if self.journal.refused_bytes:
                    self.list = output.Appended(_refused_path(self.asked.out), self.journal.refused_bytes)
                await self._answer_all(on_progress)
                self.journal.complete = True
                self._commit()
            await asyncio.to_thread(self._finish)
        except BaseException:
            with suppress(FileError):  # a disk that is full, too: the journal stays where it was, that is all
                self._commit()
            raise
        finally:
            self.output.close()  # only now: until then nobody else may write it
            if self.list is not None:
                self.list.close()
        return self.result()

    def result(self) -> Scored:
        """What was done."""
        journal = self.journal
        return Scored(
            out=self.asked.out,
            run="" if self.asked.ids else journal.run,
            rows=journal.rows,
            refused=journal.refused,
            versions=journal.versions,
            before=self.before,
            seconds=round(time.monotonic() - self.began, 3),
            refused_file=_refused_path(self.asked.out) if journal.refused else None,
        )

    async def _answer_all(self, on_progress: Callable[[Progress], None] | None) -> None:
        batches = self._batches()
        under_way: deque[asyncio.Task[tuple[_Batch, Answer | None]]] = deque()
        more = True
        try:
            while more or under_way:
                while more and len(under_way) < 2 * self.asked.connections:
                    batch = await asyncio.to_thread(next, batches, None)
                    more = batch is not None
                    if batch is not None:
                        under_way.append(asyncio.create_task(self._answer(batch)))
                if under_way:
                    batch, answer = await under_way[0]
                    under_way.popleft()
                    await asyncio.to_thread(self._put, batch, answer)
                    if on_progress is not None:
                        on_progress(self._progress(batch.share))
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _batches(self) -> Iterator[_Batch]:
        asked, kinds = self.asked, self.wanted.kinds
        columns = list(dict.fromkeys([*kinds, *([asked.ids] if asked.ids else []), *asked.keep]))
        first = self.journal.rows + 1
        for read in self.table.batches(columns, self.batch_rows, self.journal.rows):
            rows = read.num_rows
            faults: dict[int, str] = {}
            if asked.ids:
                ids, wrong = values.texts(read.column(asked.ids))
                listed = ids.to_pylist()
                wrong |= {row: "the id is missing" for row, one in enumerate(listed) if one is None}
                faults |= {row: f"{asked.ids}: {problem}" for row, problem in wrong.items()}
            else:
                listed = [f"{self.journal.run}-{number}" for number in range(first, first + rows)]
            fitted: dict[str, Any] = {}
            for name, kind in kinds.items():
                fitted[name], wrong = values.fitted(read.column(name), kind, self.table.dialect.decimal)
                for row, problem in wrong.items():
                    faults.setdefault(row, f"{name}: {problem}")
            kept = [values.plain(read.column(name)) for name in asked.keep]
            yield _Batch(first, rows, listed, fitted, kept, faults, self.table.share)
            first += rows

    async def _answer(self, batch: _Batch) -> tuple[_Batch, Answer | None]:
        """The answer to those rows of a batch that have no fault; the service may find more faults."""
        import pyarrow as pa

        while True:
            if batch.faults and self.asked.bad_rows == "stop":
                row = min(batch.faults)
                raise BadRow(self.table.source, batch.first + row, batch.faults[row])
            columns, ids = batch.columns, batch.ids
            good: Sequence[int] = range(batch.rows)
            if batch.faults:
                good = [row for row in good if row not in batch.faults]
                if not good:
                    return batch, None
                places = pa.array(good)
                columns = {name: column.take(places) for name, column in columns.items()}
                ids = [ids[row] for row in good]
            try:
                async with self.gate:
                    return batch, await self.answerer.answer(columns, ids)
            except RowRefused as refused:
                batch.faults[good[refused.row]] = refused.problem

    def _put(self, batch: _Batch, answer: Answer | None) -> None:
        """Write the answers of a batch, in the thread that writes."""
        assert self.output is not None
        journal = self.journal
        piece = output.piece(self.kind, self._rows(batch, answer))
        with self.lock:
            self.output.append(piece)
            if batch.faults:
                self._list(batch)
            journal.rows += batch.rows
            journal.refused += len(batch.faults)
            if answer is not None:
                answered = batch.rows - len(batch.faults)
                journal.versions[answer.version] = journal.versions.get(answer.version, 0) + answered
            self.good = (self.output.size, self.list.size if self.list is not None else 0)
            if time.monotonic() - self.committed >= COMMIT_S:
                self._commit()

    def _rows(self, batch: _Batch, answer: Answer | None) -> Any:
        """The lines of the output: one for each row of the batch, empty where it was refused."""
        import pyarrow as pa

        types = [each.type for each in self.shape][1 + len(batch.kept) :]
        answers: list[Any] = [pa.nulls(0, kind) for kind in types]
        if answer is not None:
            there = len(answer.predictions)
            found = [answer.predictions, *self._by_class(answer)]
            answers = [_array(column, kind) for column, kind in zip(found, types[:-2], strict=True)]
            answers += [_constant(number, there) for number in (answer.version, answer.adaptation)]
        if batch.faults:
            places, at = [], 0
            for row in range(batch.rows):
                places.append(None if row in batch.faults else at)
                at += row not in batch.faults
            answers = [column.take(pa.array(places, pa.int64())) for column in answers]
        columns = [pa.array(batch.ids, pa.string()), *batch.kept, *answers]
        return pa.RecordBatch.from_arrays(columns, schema=self.shape)

    def _by_class(self, answer: Answer) -> list[Any]:
        """The probabilities in the order of the output's columns."""
        if answer.probabilities is None or answer.classes is None:
            return []
        named = dict(zip(answer.classes, answer.probabilities, strict=True))
        if set(named) != set(self.wanted.classes):
            raise FileError(
                f"version {answer.version} answers with the classes {', '.join(map(str, answer.classes))}, the output "
                f"was begun with {', '.join(map(str, self.wanted.classes))}: begin anew with --force"
            )
        return [named[each] for each in self.wanted.classes]

    def _list(self, batch: _Batch) -> None:
        """Add the refused rows to their list."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        if self.list is None:
            self.list = output.Appended(_refused_path(self.asked.out))
            lines.writerow(_REFUSED_HEAD)
        for row in sorted(batch.faults):
            lines.writerow((batch.first + row, batch.ids[row], batch.faults[row]))
        self.list.append(text.getvalue().encode())

    def _commit(self) -> None:
        """Make what was written last, then move the journal on."""
        assert self.output is not None
        with self.lock:
            self.output.sync()
            if self.list is not None:
                self.list.sync()
            self.journal.bytes, self.journal.refused_bytes = self.good
            self.committed = time.monotonic()
            journals.write(self.asked.out, self.journal)

    def _finish(self) -> None:
        assert self.output is not None
        output.finish(self.kind, self.output.path, self.asked.out)
        journals.path_of(self.asked.out).unlink()

    def _progress(self, share: float) -> Progress:
        journal = self.journal
        seconds = time.monotonic() - self.began
        new = journal.rows - self.before
        return Progress(journal.rows, new, self.table.rows, share, journal.refused, dict(journal.versions), seconds)


def _schema(table: Table, asked: Asked, wanted: Wanted) -> Any:
    """The columns of the output."""
    import pyarrow as pa

    kind = type(wanted.classes[0]) if wanted.classes else float
    answer = {bool: pa.bool_(), int: pa.int64(), str: pa.string(), float: pa.float64()}[kind]
    fields = [("id", pa.string()), *((name, table.type_of(name)) for name in asked.keep), ("prediction", answer)]
    fields += [(f"probability_{str(each).lower() if kind is bool else each}", pa.float64()) for each in wanted.classes]
    fields += [("version", pa.int64()), ("adaptation", pa.int64())]
    names = [name for name, _ in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FileError(
            f"the output would have the column {twice[0]!r} twice: rename it in the input, or do not keep it"
        )
    return pa.schema(fields)


def _array(column: Any, kind: Any) -> Any:
    import pyarrow as pa

    return column if isinstance(column, pa.Array) else pa.array(column, kind)


def _constant(number: int | None, rows: int) -> Any:
    import pyarrow as pa

    return pa.repeat(pa.scalar(number, pa.int64()), rows)


def _refused_path(out: Path) -> Path:
    return out.with_name(out.name + output.REFUSED)
