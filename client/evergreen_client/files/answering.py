"""Who answers a batch of rows: a service over HTTP, or whatever else has the two methods of `Answerer`."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

import evergreen_client.calls as calls
from evergreen_client.answers import Answers, Wanted
from evergreen_client.errors import NotEvergreen, Refused, StatusError, TooLarge
from evergreen_client.files.errors import FileError

ARROW: Final = "application/vnd.apache.arrow.stream"

JSON_ROWS: Final = 1000
JSON_VALUES: Final = 30_000
ARROW_ROWS: Final = 5000
ARROW_VALUES: Final = 90_000
"""Values in one body, some 0.7 MB in either kind: those above a megabyte take turns at the server."""

SPOOL_SHARE: Final = 7 / 8
"""Of the spool's limit that recorded rows may fill before sending waits for the store. A file is answered faster than
its rows are stored, and a full spool drops rows."""
SPOOL_LIMIT_BYTES: Final = 4 << 30
"""Of a service that does not tell its own."""
LOOK_EVERY_S: Final = 2.0
WAIT_S: Final = 0.5
MOST_WAIT_S: Final = 600.0

T = TypeVar("T")


class Answer(NamedTuple):
    """The answers to one batch, of one version."""

    predictions: Sequence[Any]
    """A class or a number for each row; a list or an Arrow array, as below."""
    probabilities: Sequence[Sequence[Any]] | None
    """For each class the probabilities of all rows; None for a regression."""
    classes: Sequence[Any] | None
    version: int
    adaptation: int | None


class RowRefused(Exception):
    """Raised for one row of a batch (from 0) that is refused; none of the others was answered, either."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(problem)
        self.row, self.problem = row, problem


class Answerer(Protocol):
    """What scores the rows of a file."""

    name: str
    """What stands in the journal: a run goes on with the same one only."""

    async def wanted(self) -> Wanted:
        """Which features it takes, and what it answers."""
        ...

    def batch_rows(self, wanted: Wanted) -> int:
        """Rows that it likes to have at once."""
        ...

    async def answer(self, columns: Mapping[str, Any], ids: Sequence[str]) -> Answer:
        """The answers to rows given as one Arrow array for each feature. Raises `RowRefused`."""
        ...


class Caller(Protocol):
    """What `Service` needs of an `AsyncClient`."""

    url: str

    async def wanted(self) -> Wanted: ...
    async def _do(self, call: calls.Call[T]) -> T: ...


class Service:
    """A running Evergreen: asked in Arrow where it takes that, else in JSON.

    What is not the fault of one row is raised as the client raises it.
    """

    name = "a service"

    def __init__(self, client: Caller, *, record: bool = True) -> None:
        self.client = client
        self.record = record
        self.arrow = False
        self.most_rows = 1
        self._looking = asyncio.Lock()
        self._look_at = time.monotonic() if record else math.inf

    async def wanted(self) -> Wanted:
        """As of an `Answerer`. Raises `FileError` when rows are not to be recorded, and the service always does."""
        wanted = await self.client.wanted()
        told = await self.client._do(calls.get("/docs.json", dict))
        takes = told["paths"]["/predict"]["post"]["requestBody"]["content"]
        asked = told["components"]["schemas"]["PredictRequest"]["properties"]
        if not self.record and "record" not in asked:
            raise FileError(
                f"{self.client.url} records every answer: leave --no-record out, or give it a newer release"
            )
        self.most_rows = int(asked["records"]["maxItems"])
        self.arrow = ARROW in takes and "id" not in wanted.kinds and self.record
        self.classes = {f"probability_{_word(each)}": each for each in wanted.classes}
        return wanted

    def batch_rows(self, wanted: Wanted) -> int:
        rows, values = (ARROW_ROWS, ARROW_VALUES) if self.arrow else (JSON_ROWS, JSON_VALUES)
        return max(1, min(rows, values // max(len(wanted.kinds), 1), self.most_rows))

    async def answer(self, columns: Mapping[str, Any], ids: Sequence[str]) -> Answer:
        if time.monotonic() >= self._look_at:
            await self._let_the_store_follow()
        try:
            found, theirs = await (self._in_arrow(columns, ids) if self.arrow else self._in_json(columns, ids))
        except Refused as refused:
            raise refused_row(refused.said) or refused from None
        except TooLarge as error:
            fewer = max(1, len(ids) // 4)
            raise FileError(f"{error}: begin anew with fewer rows a request (--batch {fewer} --force)") from None
        if theirs != ids:
            raise NotEvergreen(
                f"{self.client.url}/predict: the answers have other ids than the rows: is a proxy between?"
            )
        return found

    async def _let_the_store_follow(self) -> None:
        """Wait while too many recorded rows are not in the store yet. Of a service that does not say it, nothing.

        Raises `FileError` when the store takes up none of them for ten minutes.
        """
        async with self._looking:
            least, since = math.inf, time.monotonic()
            while time.monotonic() >= self._look_at:
                try:
                    page = await self.client._do(calls.text("/metrics"))
                except StatusError:
                    self._look_at = math.inf
                    return
                waiting, limit = _spool(page)
                now = time.monotonic()
                if waiting <= SPOOL_SHARE * limit:
                    self._look_at = now + LOOK_EVERY_S
                    return
                if waiting < least:
                    least, since = waiting, now
                elif now - since > MOST_WAIT_S:
                    raise FileError(
                        f"{self.client.url}: {waiting / 2**20:,.0f} MB of recorded rows wait for its store, which has "
                        "taken up none for ten minutes: see `evergreen status`, then give the same command again"
                    )
                await asyncio.sleep(WAIT_S)

    async def _in_json(self, columns: Mapping[str, Any], ids: Sequence[str]) -> tuple[Answer, list[str]]:
        body = json_body(columns, ids, {} if self.record else {"record": False})
        said = await self.client._do(calls.Call("POST", "/predict", _decode, body, calls.JSON))
        by_class = None if said.probabilities is None else list(zip(*said.probabilities, strict=True))
        return Answer(said.predictions, by_class, said.classes, said.version, said.adaptation), said.ids

    async def _in_arrow(self, columns: Mapping[str, Any], ids: Sequence[str]) -> tuple[Answer, list[str]]:
        body = arrow_body({**columns, "id": ids})
        headers = {"Content-Type": ARROW, "Accept": ARROW}
        return await self.client._do(calls.Call("POST", "/predict", self._read, body, headers))

    def _read(self, body: bytes) -> tuple[Answer, list[str]]:
        """An answer in Arrow, and its ids. Raises `ValueError` when it is none."""
        import pyarrow as pa

        with pa.ipc.open_stream(body) as reader:
            batch = pa.concat_batches(list(reader))
        told = {name.decode(): text.decode() for name, text in (batch.schema.metadata or {}).items()}
        adaptation = told.get("adaptation")
        named = batch.schema.names[2:]
        answer = Answer(
            batch.column("prediction"),
            batch.columns[2:] if named else None,
            [self.classes.get(name, name) for name in named] or None,
            int(told["version"]),
            None if adaptation is None else int(adaptation),
        )
        return answer, batch.column("id").to_pylist()


def _spool(page: str) -> tuple[float, float]:
    """(bytes that wait for the store, bytes that may) as `/metrics` tells them.

    >>> _spool("evergreen_log_spool_bytes 10.0\\nevergreen_log_spool_limit_bytes 100.0\\n")
    (10.0, 100.0)
    """
    found = {name: float(value) for name, value in _SPOOL.findall(page)}
    return found.get("", 0.0), found.get("limit_", SPOOL_LIMIT_BYTES)


def arrow_body(columns: Mapping[str, Any]) -> bytes:
    """An Arrow IPC stream of these columns; of texts in Arrow arrays each different one is sent once."""
    import pyarrow as pa

    arrays = [
        pa.array(column, pa.string())
        if not isinstance(column, pa.Array)
        else column.dictionary_encode()
        if pa.types.is_string(column.type)
        else column
        for column in columns.values()
    ]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


def _word(value: Any) -> str:
    """A class as it stands in the name of a column."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


_SPOOL: Final = re.compile(r"^evergreen_log_spool_(limit_)?bytes(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_PLACE: Final = re.compile(r"(?:version \d+ cannot take these records: )?(records|ids)\[(\d+)\]")
_decode: Final = msgspec.json.Decoder(Answers).decode


def json_body(columns: Mapping[str, Any], ids: Sequence[str], more: Mapping[str, Any] | None = None) -> bytes:
    """The body of `/predict` for rows given as one Arrow array for each feature."""
    names = list(columns)
    lists = [column.to_pylist() for column in columns.values()]
    records = [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]
    return calls.encoded({"records": records, "ids": ids, **(more or {})})


def refused_row(said: str) -> RowRefused | None:
    """The row that a refusal names, and why without its number, which counts within a batch.

    >>> refused_row('records[3].age: expected a number, got "old"').args
    ('age: expected a number, got "old"',)
    """
    found = _PLACE.match(said)
    if found is None:
        return None
    what = "id: " if found[1] == "ids" else ""
    return RowRefused(int(found[2]), what + said[found.end() :].lstrip(".: "))
