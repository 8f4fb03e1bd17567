"""Does a model answer what rarely comes: missing values, categories nobody has seen, extreme numbers?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.errors import in_short
from training.manifest import GateResult
from training.parity import edge_rows

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

FARTHEST: Final = 1e-3
"""How far the probabilities of a row may be from adding up to 1."""


class Edges(msgspec.Struct, frozen=True):
    """How many edge rows a model was asked, and what was wrong with its answers, a sentence for each bad row."""

    rows: int
    wrong: tuple[str, ...] = ()


def ask(answer: Callable[[pd.DataFrame], npt.NDArray[Any]], frame: pd.DataFrame, schema: FeatureSchema) -> Edges:
    """What a model's answers to the edge rows of canonical `frame` are worth."""
    rows = edge_rows(frame, schema)
    return Edges(len(rows), tuple(_wrong(answer, rows, schema)))


def edges_gate(new: Edges, old: Edges | None) -> GateResult:
    """Fails when a row has no proper answer, unless the champion leaves as many without one."""
    bad, allowed = len(new.wrong), 0 if old is None else len(old.wrong)
    why = f"{new.rows - bad} of {new.rows} rows with missing, unseen and extreme values are answered properly"
    if bad:
        why += f"; {new.wrong[0]}"
        why += f"; the champion leaves {allowed} of them without a proper answer" if old is not None else ""
    return GateResult("edge_rows", bad <= allowed, float(bad), float(allowed), why)


def _wrong(
    answer: Callable[[pd.DataFrame], npt.NDArray[Any]], rows: pd.DataFrame, schema: FeatureSchema
) -> Iterator[str]:
    try:
        said = answer(rows)
    except Exception:  # of a pipeline of any make: which rows it refuses is asked one by one
        for at in range(len(rows)):
            one = rows.iloc[[at]]
            try:
                yield from _improper(answer(one), one, schema)
            except Exception as error:  # as above
                yield f"a row with {_described(one, rows)} is refused: {in_short(error)}"
    else:
        yield from _improper(said, rows, schema)


def _improper(said: npt.NDArray[Any], rows: pd.DataFrame, schema: FeatureSchema) -> Iterator[str]:
    values = np.asarray(said, dtype=np.float64).reshape(len(rows), -1)
    finite = np.asarray(np.isfinite(values).all(axis=1))
    proper: npt.NDArray[np.bool_] = np.ones(len(rows), dtype=bool)
    if schema.task != "regression":
        with np.errstate(invalid="ignore"):
            inside = ((values >= -FARTHEST) & (values <= 1 + FARTHEST)).all(axis=1)
            proper = inside & (np.abs(values.sum(axis=1) - 1) <= FARTHEST)
    for at in np.flatnonzero(~(finite & proper)):
        what = f"{values[at].tolist()}" if finite[at] else "NaN or infinity"
        yield f"a row with {_described(rows.iloc[[at]], rows)} is answered with {what}"


def _described(one: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The values in which an edge row differs from the most usual of them."""
    row = one.iloc[0]
    missing = [name for name, gone in zip(rows.columns, row.isna().tolist(), strict=True) if gone]
    if len(missing) > 3:
        return f"{len(missing)} values missing"
    if missing:
        return f"{', '.join(map(repr, missing))} missing"
    usual = rows.mode(dropna=False).iloc[0]
    odd = [f"{name!r} = {row[name]!r}" for name in rows.columns if row[name] != usual[name]]
    return ", ".join(odd[:3]) or "usual values"
