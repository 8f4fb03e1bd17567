"""The compiled engine for ensembles of trees: what it reads, and how it is asked. NumPy at import.

`training/trees.c` answers in the numbers of scikit-learn, to the last bits of float64. It is an optional part: where it
was not compiled, or for trees that it does not know, the ONNX twin answers. What it reads is data: a head and plain
arrays, little-endian, every one of which it checks.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Link = Literal["identity", "exp", "logistic", "softmax", "each logistic"]
LINKS: Final[tuple[Link, ...]] = ("identity", "exp", "logistic", "softmax", "each logistic")
"""What becomes of the sums s, each over the divisor: s; exp(s); 1 - p and p = 1 / (1 + exp(a s + b)); softmax; the
same p of each, over their sum."""

MISSING_LEFT: Final = 1
LEFT_ENDS: Final = 2
RIGHT_ENDS: Final = 4
"""Flags of a node: where a missing value goes, and which of its children are leaves."""

MAGIC: Final = b"EVGTREES"
FORMAT: Final = 1
_HEAD: Final = struct.Struct("<8s8Id")


class Ensemble(NamedTuple):
    """Trees whose nodes come in the order of a walk from the left, tree after tree; so do their leaves.

    A node sends a row left when its feature is at most the threshold.
    """

    fill: npt.NDArray[np.float32]
    """For each feature what is compared when it is missing; NaN: nothing, the node says where to go."""
    base: Floats
    """Where each sum begins."""
    slope: Floats
    intercept: Floats
    """a and b of a logistic link, for each sum."""
    inner: npt.NDArray[np.uint32]
    """Nodes of each tree that are no leaves; it has one leaf more."""
    column: npt.NDArray[np.uint32]
    """The sum to which each tree adds; not read when each leaf has a value for every sum."""
    threshold: npt.NDArray[np.float32]
    feature: npt.NDArray[np.uint32]
    flags: npt.NDArray[np.uint8]
    value: Floats
    """Leaves by one, or by the number of sums."""
    link: Link
    divisor: float = 1.0

    def encode(self) -> bytes:
        """The bytes that `Trees` reads."""
        width, unused = self.value.shape[1], 0
        counts = (len(self.fill), len(self.base), len(self.inner), len(self.threshold))
        head = _HEAD.pack(MAGIC, FORMAT, *counts, width, LINKS.index(self.link), unused, self.divisor)
        floats = (self.base, self.slope, self.intercept, self.value)
        parts = [np.ascontiguousarray(each, "<f8") for each in floats]
        parts += [np.ascontiguousarray(self.fill, "<f4")]
        parts += [np.ascontiguousarray(each, "<u4") for each in (self.inner, self.column)]
        parts += [np.ascontiguousarray(self.threshold, "<f4"), np.ascontiguousarray(self.feature, "<u4")]
        return head + b"".join(part.tobytes() for part in (*parts, np.ascontiguousarray(self.flags, np.uint8)))


def is_built() -> bool:
    """Whether the engine was compiled for this Python and this machine."""
    try:
        import training._trees  # noqa: F401
    except ImportError:
        return False
    return True


class Trees:
    """Trees ready to answer. `predict` may be called from several threads at once.

    Raises ImportError where the engine is not built, `ValueError` for bytes that are no compiled trees, which says why.
    """

    def __init__(self, content: bytes) -> None:
        from training._trees import Ensemble as Compiled

        self._ensemble = Compiled(content)
        self._predict = self._ensemble.predict
        self.features, self.columns = self._ensemble.shape()

    def predict(self, matrix: npt.NDArray[np.float32], way: str | None = None) -> Floats:
        """The answers, n by columns, for n rows by features of float32, contiguous.

        A row is answered to the last bit as it is among others. `way` is for proofs and measurements: one of `ways`.
        Raises `ValueError` for a matrix of another form.
        """
        out = np.empty((len(matrix), self.columns))
        self._predict(matrix, out, way)
        return out


def ways() -> list[str]:
    """How this machine can answer: "walk", node by node, and bit vectors, the fastest last. Raises ImportError."""
    from training._trees import ways as compiled

    return ["walk", *reversed(compiled())]


def rounded_down(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 that is not above each threshold: float32 values compare with both alike."""
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded
