"""Files of the sample's rows, and a real version that answers them without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from evergreen_client.files import Asked, Dialect, Progress, Scored, open_table, score

from service import sample
from service.command.predict import Offline
from service.handover import LiveVersion
from service.serving.predictor import load


class Killed(BaseException):
    """Raised where a test ends a run."""


def rows(n: int, start: int = 0) -> pd.DataFrame:
    """n rows of the sample, and a column `key` that is different in each."""
    frame = sample.frame(n, start=start).drop(columns=[sample.TARGET])
    frame.insert(0, "key", [f"c{number:06d}" for number in range(start, start + n)])
    return frame


def offline(artefact: Path) -> Offline:
    """The version in an artefact folder."""
    return Offline(load("evergreen", LiveVersion(1, str(artefact)), 10_000, ()))


def scored(
    answerer: Any,
    source: Path,
    asked: Asked,
    *,
    dialect: Dialect | None = None,
    on_progress: Callable[[Progress], None] = lambda now: None,
) -> Scored:
    return asyncio.run(score(open_table(str(source), dialect), answerer, asked, on_progress))


def killed_after(rows: int) -> Callable[[Progress], None]:
    """An `on_progress` that ends the run as Ctrl-C does, once so many rows are done by it."""

    def stop(now: Progress) -> None:
        if now.new >= rows:
            raise Killed

    return stop
