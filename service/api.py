"""Evergreen from a notebook or a script: `from service.api import init, train, push`.

What the commands `evergreen init`, `train` and `push` do, with a DataFrame for the file and a fitted pipeline for the
model. It is in the package `service` because the import name `evergreen` belongs to somebody else's distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from evergreen_client import Client

from service.command.first_version import Trained
from service.command.init import InitError, InitReport
from service.command.init import init as write
from service.configuration import load
from service.keys import known_token
from service.settings import FILE_NAME

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["init", "push", "train"]

DATA: Final = "data.parquet"
"""The rows of a DataFrame, beside the settings."""


def init(
    data: pd.DataFrame | str | Path,
    target: str,
    folder: str | Path = ".",
    *,
    time: str = "",
    shuffle: bool = False,
    ignore: Sequence[str] = (),
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto",
    force: bool = False,
) -> InitReport:
    """Write `evergreen.toml` into `folder` and say what was decided of each column; a DataFrame's rows beside it.

    `data` may be whatever `training.source` reads as well. With `force` files that are there are replaced.
    Raises `InitError`, and for a DataFrame that Parquet cannot hold what pandas raises.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / FILE_NAME
    if not isinstance(data, str | Path):
        if out.exists() and not force:
            raise InitError(f"{out} exists already: force=True replaces it")
        rows = data if data.index.name is None and data.index.nlevels == 1 else data.reset_index()
        rows.to_parquet(folder / DATA, index=False)
        data = folder / DATA
    return write(data, target, time=time, shuffle=shuffle, ignore=ignore, task=task, out=out, force=force)


def train(folder: str | Path = ".", *, force: bool = False) -> Trained:
    """Train the first version from the settings in `folder`, without a server; with `force` also when there is one.

    Raises `service.command.first_version.TrainRefused`, and `service.settings.SettingsError`.
    """
    from service.command.first_version import train as first_version

    return first_version(load(Path(folder) / FILE_NAME), force=force)


def push(model: Any, folder: str | Path = ".", *, why: str = "", trained_until: str = "") -> int:
    """Hand a fitted pipeline, or the bytes of a skops or ONNX file, to the service of `folder`; the run that judges it.

    `trained_until` is the time of the newest row that it was fitted to: only later rows judge it then.
    Raises an `EvergreenClientError`: `Refused` when it is, `Unreachable` when nobody answers.
    """
    from training.trust import to_skops

    settings = load(Path(folder) / FILE_NAME)
    content = model if isinstance(model, bytes) else to_skops(model)
    with Client(settings.address, known_token(settings)) as client:
        return client.push(content, why, trained_until)
