"""Large JSON bodies, read straight into the matrix that compiled trees answer from. NumPy at import.

`training/records.c` is an optional part, as the trees' engine is. It reads `{"records": [...], ...}` as most programs
write it, without the interpreter, and answers None for everything else: then the strict decoder reads the whole body.
What it reads is to the last bit what that decoder makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from monitoring.schema import FeatureSchema

Table = tuple[Mapping[str | None, float], float]
"""The code of each category, None for what is missing; and that of any other."""

_KINDS: Final = ("numeric", "boolean", "categorical")


class Records(NamedTuple):
    """The n records of a body."""

    matrix: npt.NDArray[np.float32]
    """n by the columns that the model reads."""
    pieces: list[tuple[int, int, int]]
    """Where some of them begin and end in the body, and how many they are."""
    end: int
    """Behind the list of them."""


class RecordReader:
    """Reads records of `schema` into the columns of a matrix; `read` may be called from several threads at once.

    Column c is the feature at `places[c]`, by `tables[c]` when it is categorical; a category has `max_chars` characters
    at most. Raises ImportError where it was not compiled, `ValueError` for features that it does not know how to read.
    """

    def __init__(
        self, schema: FeatureSchema, places: Sequence[int], tables: Sequence[Table | None], max_chars: int
    ) -> None:
        from training._records import Reader

        column = {place: at for at, place in enumerate(places)}
        if len(column) < len(places):
            raise ValueError("a feature is read into two columns")
        features = []
        for place, feature in enumerate(schema.features):
            if feature.kind not in _KINDS:
                raise ValueError(f"{feature.name} is a {feature.kind}")
            at = column.get(place, -1)
            table = tables[at] if at >= 0 else None
            codes, unknown = ({} if feature.kind == "categorical" else None, np.nan) if table is None else table
            missing = np.nan if codes is None else codes.get(None, np.nan)
            features.append((feature.name, _KINDS.index(feature.kind), at, codes, missing, unknown))
        self._read = Reader(features, max_chars).read
        self._columns = len(places)

    def read(self, body: bytes, max_rows: int, piece_bytes: int) -> Records | None:
        """The records of a body, 1 to `max_rows`, cut into pieces of `piece_bytes` and more; None: it was not read."""
        found = self._read(body, max_rows, piece_bytes)
        if found is None:
            return None
        matrix, pieces, end = found
        return Records(np.frombuffer(matrix, np.float32).reshape(-1, self._columns), pieces, end)
