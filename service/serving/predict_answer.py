"""The body of a 200 of `/predict`."""

from __future__ import annotations

from typing import Any

import msgspec


class PredictAnswer(msgspec.Struct, omit_defaults=True):
    """The record keeps exactly these bytes, or those of the pieces that a large body was cut into."""

    model: str
    version: int
    adaptation: int | msgspec.UnsetType  # without a default, so that it stands here; UNSET leaves it out
    ids: list[str]
    predictions: list[Any]
    probabilities: list[list[float]] | None = None
    classes: tuple[Any, ...] | None = None
    trace_id: str | msgspec.UnsetType = msgspec.UNSET
