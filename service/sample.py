"""The built-in sample stream: credit decisions, and whether each loan was paid back.

A row is one application: what the applicant told, what the bank knew, and whether the loan `defaulted`. Row `i` of a
stream depends on the seed, the scenario and `i` alone, however it is read, so that two readers see the same world.

Scenarios, each beginning at `at_row`:
- `none`: nothing moves;
- `abrupt`: interest rates jump. Applicants change (incomes, amounts, purposes) and so does what makes a loan fail:
  owners with large loans and little saved now default, a clean payment history no longer tells much;
- `gradual`: the same change, reaching ever more of the applicants over `over_rows` rows;
- `recurring`: the same change, coming and going every `over_rows` rows;
- `harmless`: applicants change, what makes a loan fail does not: a model that knows the old world still serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

Scenario = Literal["none", "abrupt", "gradual", "recurring", "harmless"]
SCENARIOS: Final[tuple[Scenario, ...]] = get_args(Scenario)

TARGET: Final = "defaulted"
"""1: the loan failed. About one in five."""
TIME: Final = "applied_at"
"""When the application came in, UTC; one about every five minutes. Orders the rows, is no feature."""
SENSITIVE: Final = "sex"
LABEL_DELAY: Final = "label_delay_s"
"""Seconds until the label is known, 15 to 45 days. For whoever replays the stream; never a feature."""
MEAN_LABEL_DELAY_S: Final = 30 * 86_400.0

NUMERIC: Final = (
    "age", "income", "amount", "debt_ratio", "history_years", "open_loans", "late_payments", "savings",
)  # fmt: skip
BOOLEAN: Final = ("owns_home", "returning")
CATEGORICAL: Final = ("purpose", "employment", "region", "sex")
FEATURES: Final = NUMERIC + BOOLEAN + CATEGORICAL

TRAINING_ROWS: Final = 4000
"""Rows before a scenario begins, unless said otherwise: what the first model is trained on."""

_BLOCK: Final = 1024
_FIRST_AT: Final = "2025-01-01"
_SECONDS_A_ROW: Final = 300

_PURPOSES: Final = ("business", "car", "education", "home", "travel")
_EMPLOYMENT: Final = ("employee", "public", "retired", "self-employed", "unemployed")
_REGIONS: Final = ("centre", "coast", "hills", "north", "south")


def training_frame(rows: int = TRAINING_ROWS, seed: int = 0) -> pd.DataFrame:
    """The rows a first model is trained on: features, `TIME` and `TARGET`, nothing moves."""
    return frame(rows, seed=seed).drop(columns=LABEL_DELAY)


def stream(
    rows: int,
    *,
    start: int = 0,
    seed: int = 0,
    scenario: Scenario = "none",
    at_row: int = TRAINING_ROWS,
    over_rows: int = TRAINING_ROWS,
    chunk_rows: int = 1000,
) -> Iterator[pd.DataFrame]:
    """Rows `start` … `start + rows` as frames of at most `chunk_rows`; see `frame`."""
    for first in range(start, start + rows, chunk_rows):
        yield frame(
            min(chunk_rows, start + rows - first),
            start=first,
            seed=seed,
            scenario=scenario,
            at_row=at_row,
            over_rows=over_rows,
        )


def frame(
    rows: int,
    *,
    start: int = 0,
    seed: int = 0,
    scenario: Scenario = "none",
    at_row: int = TRAINING_ROWS,
    over_rows: int = TRAINING_ROWS,
) -> pd.DataFrame:
    """Rows `start` … `start + rows`: `TIME`, the features, `TARGET` and `LABEL_DELAY`; the index is the row number.

    Raises `ValueError` for an unknown scenario or a negative row.

    >>> from service import sample
    >>> sample.frame(3, start=10).equals(sample.frame(20).iloc[10:13])
    True
    """
    import pandas as pd

    if scenario not in SCENARIOS:
        raise ValueError(f'no scenario "{scenario}"; there are {", ".join(SCENARIOS)}')
    if rows < 0 or start < 0 or over_rows < 1:
        raise ValueError(f"rows and start are 0 or more, over_rows 1 or more; got {rows}, {start}, {over_rows}")
    blocks = range(start // _BLOCK, max(start // _BLOCK, (start + rows - 1) // _BLOCK) + 1)
    whole = pd.concat([_block(seed, number, scenario, at_row, over_rows) for number in blocks])
    return whole.iloc[start - blocks[0] * _BLOCK :].head(rows)


def _block(seed: int, number: int, scenario: Scenario, at_row: int, over_rows: int) -> pd.DataFrame:
    """Rows of one block. Long, because each column is made of those above it: a part of its own would take them all.

    The draws are the same in every scenario: scenarios differ only where something moved.
    """
    import numpy as np
    import pandas as pd

    random = np.random.default_rng([seed, number])
    normal = random.standard_normal((_BLOCK, 8))
    uniform = random.random((_BLOCK, 16))
    row = np.arange(number * _BLOCK, (number + 1) * _BLOCK)

    moved = uniform[:, 0] < _share_moved(row, scenario, at_row, over_rows)
    changed = moved & (scenario != "harmless")  # what makes a loan fail

    age = np.clip(np.round(19 + 52 * random.beta(1.6, 2.4, _BLOCK) + 5 * moved), 18, 90)
    income = np.exp(10.35 + 0.55 * normal[:, 0] + np.where(moved, 0.30, 0.0))
    rich = uniform[:, 1] < 0.03  # the heavy tail: Pareto with index 1.8
    income = np.round(np.where(rich, income * (1 - uniform[:, 2]) ** (-1 / 1.8), income), 2)
    amount = np.round(np.exp(9.1 + 0.65 * normal[:, 1] + 0.25 * normal[:, 0] + np.where(moved, 0.35, 0.0)), -2)
    debt = 1 / (1 + np.exp(-(-0.7 + 0.8 * normal[:, 2] + np.where(moved, 0.35, 0.0))))
    history = np.round(np.minimum(np.abs(7 * normal[:, 3]), np.maximum(age - 18, 0)), 1)
    loans = _poisson(uniform[:, 3], 1.3)
    late = _poisson(uniform[:, 4], 0.7)
    savings = np.round(np.exp(7.6 + 1.3 * normal[:, 4] + 0.3 * normal[:, 0]), 2)
    owner = uniform[:, 5] < 0.25 + 0.35 * (age > 38)
    returning = uniform[:, 6] < 0.4
    purpose = _choice(uniform[:, 7], moved, (0.16, 0.34, 0.14, 0.24, 0.12), (0.28, 0.20, 0.08, 0.36, 0.08))
    employment = _choice(uniform[:, 8], moved, (0.55, 0.16, 0.10, 0.13, 0.06), (0.46, 0.16, 0.10, 0.20, 0.08))
    region = _choice(uniform[:, 9], moved, (0.30, 0.20, 0.15, 0.20, 0.15), (0.22, 0.34, 0.12, 0.18, 0.14))
    female = uniform[:, 10] < 0.47

    burden = np.log(amount / income)  # about -1.3 on average
    before = (
        -4.34
        + 1.15 * np.minimum(late, 4)
        + 5.2 * debt
        + 1.0 * (burden + 1.3)
        - 0.10 * np.minimum(history, 12)
        + np.array([0.6, 0.0, 0.2, -0.4, 0.3])[purpose]
        + np.array([0.0, -0.6, -0.3, 0.5, 1.6])[employment]
        + np.where(age < 26, 0.8, 0.0)
        - 0.3 * owner
    )
    after = (
        -4.1
        + 0.15 * np.minimum(late, 4)
        - 0.5 * debt
        + 1.5 * (burden + 1.3)
        + 2.6 * owner
        - 0.75 * (np.log(savings) - 7.6)
        + np.array([1.0, -0.6, 0.0, 1.3, -0.6])[purpose]
        + np.array([0.2, 0.6, 0.0, -0.6, -0.4])[employment]
        + np.array([0.0, 1.2, 0.0, -0.4, 0.0])[region]
    )
    chance = 1 / (1 + np.exp(-np.where(changed, after, before)))
    defaulted = (uniform[:, 11] < chance).astype(np.int64)

    seconds = row * _SECONDS_A_ROW + np.floor(uniform[:, 12] * _SECONDS_A_ROW).astype(np.int64)
    employed: npt.NDArray[Any] = np.array(_EMPLOYMENT, dtype=object)[employment]
    employed[uniform[:, 13] < 0.03] = None
    return pd.DataFrame(
        {
            TIME: pd.Timestamp(_FIRST_AT) + pd.to_timedelta(seconds, unit="s"),
            "age": age.astype(np.int64),
            "income": income,
            "amount": amount,
            "debt_ratio": np.round(np.where(uniform[:, 14] < 0.02, np.nan, debt), 3),
            "history_years": np.where(~returning & (normal[:, 5] > 0.9), np.nan, history),
            "open_loans": loans,
            "late_payments": late,
            "savings": np.where(normal[:, 6] > 1.4, np.nan, savings),
            "owns_home": owner,
            "returning": returning,
            "purpose": np.array(_PURPOSES, dtype=object)[purpose],
            "employment": employed,
            "region": np.array(_REGIONS, dtype=object)[region],
            "sex": np.where(female, "female", "male").astype(object),
            TARGET: defaulted,
            LABEL_DELAY: np.round(MEAN_LABEL_DELAY_S * (0.5 + uniform[:, 15])),
        },
        index=row,
    )


def _share_moved(
    row: npt.NDArray[np.int64], scenario: Scenario, at_row: int, over_rows: int
) -> npt.NDArray[np.float64]:
    """How much of the new world there is at each row, 0 … 1."""
    import numpy as np

    since = row - at_row
    share = (since >= 0).astype(np.float64)
    if scenario == "none":
        share[:] = 0.0
    elif scenario == "gradual":
        share = np.minimum(share * since / over_rows, 1.0)
    elif scenario == "recurring":
        share[since // over_rows % 2 == 1] = 0.0
    return share


def _poisson(uniform: npt.NDArray[np.float64], mean: float) -> npt.NDArray[np.int64]:
    """Counts by inversion: one uniform a row, so that a row's other draws stay where they are."""
    import numpy as np

    counts = np.arange(20)
    weights = np.exp(-mean) * np.cumprod(np.concatenate([[1.0], mean / counts[1:]]))
    return np.searchsorted(np.cumsum(weights)[:-1], uniform).astype(np.int64)


def _choice(
    uniform: npt.NDArray[np.float64], moved: npt.NDArray[np.bool_], shares: tuple[float, ...], then: tuple[float, ...]
) -> npt.NDArray[np.int64]:
    import numpy as np

    old, new = (np.searchsorted(np.cumsum(each)[:-1], uniform) for each in (shares, then))
    return np.where(moved, new, old).astype(np.int64)
