"""What the loop is held against: no training at all, and trainings by the clock, each put in service unasked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring.feature import LABEL
from service.replay.stream import Stream

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class Scheduled:
    """What a schedule answered (n by classes, or n values), and what it took."""

    output: npt.NDArray[np.float64]
    trainings: int
    seconds: float


class Schedules:
    """Schedules over one stream. Models that several of them share are fitted once.

    The pipeline is the product's own with its default parameters, on one thread.
    """

    def __init__(self, stream: Stream, seed: int = 0, most_rows: int = 100_000) -> None:
        import pandas as pd

        schema = stream.schema
        self._stream, self._seed, self._most_rows = stream, seed, most_rows
        self._later = schema.canonical(stream.frame)
        self._features = pd.concat([stream.first.frame[list(schema.names)], self._later], ignore_index=True)
        self._labels = np.concatenate([schema.labels(stream.first.frame[LABEL]), stream.labels])
        self._start = len(stream.first.frame)
        self._fitted: dict[tuple[int, int, int], tuple[Any, float]] = {}

    def equally_spaced(
        self, trainings: int, *, window: bool = False, on_rows: Callable[[int], None] = lambda rows: None
    ) -> Scheduled:
        """The first version, then `trainings` more at equal distances in rows, on all labelled rows known then.

        With `window` on the newest as many as trained the first version. 0 trainings: the first version alone.
        """
        n, names = len(self._stream), list(self._stream.schema.names)
        bounds = [round(n * part / (trainings + 1)) for part in range(trainings + 2)]
        answers, model, seconds = [], None, 0.0
        for start, stop in pairwise(bounds):
            fitted, took = self._fit(start, window)
            model, seconds = fitted or model, seconds + took
            answers.append(self._said(model, self._later.iloc[start:stop][names]))
            on_rows(stop)
        return Scheduled(np.concatenate(answers), trainings, seconds)

    def _fit(self, row: int, window: bool) -> tuple[Any, float]:
        """The pipeline on what is known when `row` comes, None when a class is missing there; and its seconds."""
        from threadpoolctl import threadpool_limits

        from training.pipeline import fit

        known = np.concatenate([np.arange(self._start), self._start + self._stream.known(row)])
        known = known[-min(self._start if window else self._most_rows, self._most_rows) :]
        key = (int(known[0]), int(known[-1]), len(known))
        if key not in self._fitted:
            schema, labels = self._stream.schema, self._labels[known]
            began = time.perf_counter()
            model = None
            if schema.task == "regression" or set(schema.classes) <= set(labels.tolist()):
                with threadpool_limits(1):
                    model = fit(schema, self._features.iloc[known], labels, None, self._seed)
            self._fitted[key] = model, time.perf_counter() - began
        return self._fitted[key]

    def _said(self, model: Any, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        from threadpoolctl import threadpool_limits

        from training.pipeline import predict

        with threadpool_limits(1):
            return np.asarray(predict(model, rows, self._stream.schema), dtype=np.float64)
