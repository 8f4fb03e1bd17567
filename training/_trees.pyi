"""What `training/trees.c` offers, where it was compiled."""

from typing import Any

import numpy as np
import numpy.typing as npt

class Ensemble:
    def __new__(cls, content: bytes) -> Ensemble: ...
    def predict(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float64], way: str | None = None) -> None: ...
    def shape(self) -> tuple[int, int]: ...

def encode(
    rows: list[tuple[Any, ...]],
    places: tuple[int, ...],
    tables: tuple[tuple[dict[Any, float], float] | None, ...],
    out: npt.NDArray[np.float32],
) -> None: ...
def ways() -> list[str]: ...
