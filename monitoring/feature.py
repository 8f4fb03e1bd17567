"""What is a feature? Its name, kind and limits; and the names of the columns that Evergreen adds beside features."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from monitoring.errors import CannotGoOn
from monitoring.fits import iso
from monitoring.nearest import nearest as nearest_word

Kind = Literal["numeric", "boolean", "categorical", "datetime"]
Task = Literal["binary", "multiclass", "regression"]

MAX_CATEGORIES: Final = 1000
"""Categories remembered for one feature, the most frequent ones: enough to compare, small enough to ship."""

ID: Final = "_id"
AT: Final = "_at"
"""Seconds since 1970 UTC when it was answered, or of the source's time column."""
VERSION: Final = "_version"
ADAPTATION: Final = "_adaptation"
"""Number of the version's adaptation that was in force, NaN when none was."""
PREDICTED: Final = "_prediction"
SCORE: Final = "_score"
"""Probability of the second class of a binary task."""
PROBABILITIES: Final = "_probabilities"
LABEL: Final = "_label"
OBSERVED_AT: Final = "_observed_at"
SOURCE: Final = "_source"
"""Name of the token that the label came with."""
HOLDOUT: Final = "_holdout"
"""Of a reference: whether the model was not fitted on the row."""
ORIGIN: Final = "_origin"
"""Of a snapshot: "source" or "record"."""

RESERVED_COLUMNS: Final = frozenset(
    {ID, AT, VERSION, ADAPTATION, PREDICTED, SCORE, PROBABILITIES, LABEL, OBSERVED_AT, SOURCE, HOLDOUT, ORIGIN}
)
"""Columns that the recorded window, the snapshot and the reference add beside the features."""

_SHOWN_CHARS: Final = 40


class SchemaError(CannotGoOn, ValueError):
    """Raised when a frame, its columns or a schema file cannot be what a model is trained on."""


class Feature(msgspec.Struct, frozen=True):
    """One column that the model takes. `minimum` and `maximum` are of the training data, as float32 sees them."""

    name: str
    kind: Kind
    nullable: bool = False  # training data had missing values
    integer: bool = False  # training data had whole numbers only by type; requests may still send fractions
    minimum: float | None = None  # numeric: as is; datetime: days since 1970-01-01 UTC; None when never present
    maximum: float | None = None
    categories: tuple[str, ...] = ()  # sorted; the 1000 most frequent

    def __post_init__(self) -> None:
        problem = _name_problem(self.name)
        if problem:
            raise SchemaError(f"column {shown(self.name)} cannot be a feature: {problem}")

    def examples(self, max_chars: int) -> list[Any]:
        """Up to five JSON values typical of the training data, none when it had none; text of at most `max_chars`."""
        if self.kind == "boolean":
            return [True, False]
        if self.kind == "categorical":
            return [category for category in self.categories if len(category) <= max_chars][:5]
        if self.minimum is None or self.maximum is None:
            return []
        center = self.minimum / 2 + self.maximum / 2
        values = [center, self.minimum, self.maximum]
        if self.kind == "datetime":
            return list(dict.fromkeys(instant(value) for value in values))
        if self.integer:
            return list(dict.fromkeys(int(value) for value in values))
        return list(dict.fromkeys(short(value) for value in values))


def short(value: float) -> float:
    """The shortest decimal that is the same float32: 0.1 where the double says 0.10000000149."""
    return float(str(np.float32(value)))


def instant(days: float) -> str:
    """Days since 1970-01-01 UTC as ISO 8601; what lies outside the years 1 to 9999 as their first or last second."""
    try:
        return iso(days * 86_400)
    except OverflowError:
        return "9999-12-31T23:59:59Z" if days > 0 else "0001-01-01T00:00:00Z"


# -- words -------------------------------------------------------------------------------------------------------------


def _name_problem(name: str) -> str | None:
    """Why a column cannot be a feature, or None."""
    if not name:
        return "its name is empty; rename it"
    if name in RESERVED_COLUMNS:
        return "Evergreen uses that name for its own columns; rename it"
    if any(character in '"\\' or character < " " for character in name):
        return 'its name has a ", a \\ or a control character, which a request cannot spell plainly; rename it'
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid Unicode; rename it"
    return None


def first_repeated(names: Iterable[Any]) -> Any | None:
    """The first name that was there before, or None."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def nearest(name: str, known: Iterable[Any]) -> str:
    """The end of a message about an unknown name: what may be meant, or which there are."""
    names = [str(column) for column in known]
    close = nearest_word(str(name), names, cutoff=0.5)
    if close:
        return f"; did you mean {shown(close)}?"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"; the columns are {', '.join(names[:20])}{more}"


def shown(value: Any) -> str:
    """A value for a message: text in quotes, cut to 40 characters."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "an integer too long to print"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def some(values: Sequence[Any], most: int = 5) -> str:
    """The first values for a message."""
    return ", ".join(shown(value) for value in values[:most]) + (", …" if len(values) > most else "")
