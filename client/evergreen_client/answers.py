"""What the service answers to a prediction, and what its `/schema` says that a sender needs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from evergreen_client.errors import NotEvergreen

Task = Literal["binary", "multiclass", "regression"]
Scalar = bool | int | float | str


class Warned(msgspec.Struct, frozen=True):
    """What of one column lies outside what training saw."""

    column: str
    kind: Literal["category", "range"]
    count: int
    """Rows that it is said of."""
    rows: list[int]
    """The first hundred of them, counted from 0."""
    message: str


class Answers(msgspec.Struct, frozen=True):
    """The answers to one request, in the order of its rows."""

    model: str
    version: int
    """Of the model that answered all of them."""
    ids: list[str]
    """One for each row: what a label names later."""
    predictions: list[Scalar]
    """A class for each row, or a number."""
    probabilities: list[list[float]] | None = None
    """Rows by classes, in the order of `classes`; None for regression."""
    classes: tuple[Scalar, ...] | None = None
    """None for regression."""
    adaptation: int | None = None
    """Number of the adaptation of the version's output that was in force."""
    trace_id: str | None = None
    warnings: list[Warned] | None = None
    """None when they were not asked for."""


class Wanted(msgspec.Struct, frozen=True):
    """What the service expects to be sent."""

    kinds: dict[str, str]
    """Feature → numeric | boolean | categorical | datetime."""
    target: str
    task: Task
    classes: tuple[Scalar, ...]


def read_schema(answer: dict[str, Any]) -> Wanted:
    """What a sender needs of a `/schema` answer. Raises `NotEvergreen` when it is not one of Evergreen."""
    try:
        kinds = {name: found["x-evergreen"]["kind"] for name, found in answer["properties"].items()}
        return msgspec.convert({"kinds": kinds, **answer["x-evergreen"]}, Wanted)
    except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        raise NotEvergreen(f"this /schema is not one of Evergreen ({error})") from None
