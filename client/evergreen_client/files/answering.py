"""Who answers a batch of rows: a service over HTTP, or whatever else has the two methods of `Answerer`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

import evergreen_client.calls as calls
from evergreen_client.answers import Answers, Wanted
from evergreen_client.errors import Refused

MOST_ROWS: Final = 1000
_BODY_VALUES: Final = 30_000
"""Values in one JSON body, some 0.7 MB of it: larger ones take turns at the server."""


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

    async def wanted(self) -> Wanted: ...
    async def _do(self, call: calls.Call[Answers]) -> Answers: ...


class Service:
    """A running Evergreen. What is not the fault of one row is raised as the client raises it."""

    name = "a service"

    def __init__(self, client: Caller, *, record: bool = True) -> None:
        self.client = client
        self.record = record

    async def wanted(self) -> Wanted:
        return await self.client.wanted()

    def batch_rows(self, wanted: Wanted) -> int:
        return max(1, min(MOST_ROWS, _BODY_VALUES // max(len(wanted.kinds), 1)))

    async def answer(self, columns: Mapping[str, Any], ids: Sequence[str]) -> Answer:
        body = json_body(columns, ids, {} if self.record else {"record": False})
        try:
            said = await self.client._do(calls.Call("POST", "/predict", _decode, body, calls.JSON))
        except Refused as refused:
            raise refused_row(refused.said) or refused from None
        by_class = None if said.probabilities is None else list(zip(*said.probabilities, strict=True))
        return Answer(said.predictions, by_class, said.classes, said.version, said.adaptation)


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
