"""The fast layer on a champion's output: what it is, how it is applied, how its experts are scored. NumPy at import.

An adaptation is a mixture of small experts on the link scale (binary: the logit; multiclass: log probabilities;
regression: the value). Let v be the champion's output there and x the matrix the champion's twin reads:

    served = v + clip(sum of weight[e] * expert[e](v, x) - v, -bound, bound)

An expert is the identity (v), a recalibration (a + b v) or a residual learner (a small tree ensemble on (v, x)). How
experts are fitted and what their weights come from stands in `training/experts.py`. Nothing here runs code from a file:
an adaptation is numbers and one ONNX graph of one tree operator.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.errors import EvergreenError
from monitoring.feature import Task
from training.session import OneRow, UnloadableGraph, open_session

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

FORMAT: Final = 1
CLIP: Final = 1e-4
"""Probabilities are clipped to this before their logarithm is taken: a champion's 0 or 1 must stay correctable."""

IDENTITY: Final = "identity"


class AdaptationError(EvergreenError, ValueError):
    """Raised when bytes are no adaptation, or one of another format or another model."""


class Expert(msgspec.Struct, frozen=True):
    """One way to correct the champion's output, on the link scale: `intercept + slope * v`, plus the trees' output."""

    name: str
    rows: int
    """Newest matured rows that it was fitted to; 0 for the identity."""
    intercept: tuple[float, ...]
    """One number, or one for each class."""
    slope: float
    learners: tuple[int, ...] = ()
    """Residual learners whose mean output is added, by their place in the graph."""


class Adaptation(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts for one version's output. The first expert is the identity."""

    format: int = FORMAT
    version: int
    """Of the model whose output it corrects."""
    number: int = 0
    """Grows with each adaptation of a version; 0: never in force."""
    task: Task
    width: int
    """Columns of the link scale: 1, or the number of classes when there are more than two."""
    columns: int
    """Columns of x; 0: no expert reads the features."""
    experts: tuple[Expert, ...]
    weights: tuple[float, ...]
    bound: float
    """How far an output may be moved, in units of the link scale."""
    graph: bytes = b""
    """ONNX: one tree ensemble from (v, x), float32, to `width` outputs for each residual learner; empty without one."""

    def encode(self) -> bytes:
        """MessagePack; `decode` reads it."""
        return msgspec.msgpack.encode(self)

    @property
    def digest(self) -> str:
        """SHA-256 of `encode()`, in hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def weight_of(self) -> dict[str, float]:
        """The weight of each expert, by its name."""
        return {expert.name: weight for expert, weight in zip(self.experts, self.weights, strict=True)}

    @property
    def slope(self) -> float:
        """By how much the served output follows the champion's, without the residual learners' part."""
        return float(sum(w * e.slope for w, e in zip(self.weights, self.experts, strict=True)))


def decode(data: bytes) -> Adaptation:
    """The adaptation in these bytes. Raises `AdaptationError` for anything that is not a whole one of our format."""
    try:
        found = msgspec.msgpack.decode(data, type=Adaptation)
    except (ValueError, RecursionError) as error:
        raise AdaptationError(f"these {len(data)} bytes are no adaptation: {error}") from error
    if found.format != FORMAT:
        raise AdaptationError(f"the adaptation has format {found.format}, this release reads {FORMAT}: update it")
    wrong = (
        len(found.weights) != len(found.experts)
        or not found.experts
        or any(len(e.intercept) not in (1, found.width) for e in found.experts)
        or not np.isfinite([found.bound, *found.weights, *(e.slope for e in found.experts)]).all()
        or not np.isfinite([a for e in found.experts for a in e.intercept]).all()
        or min(found.weights) < 0
        or (not found.graph and any(e.learners for e in found.experts))
    )
    if wrong:
        raise AdaptationError(f"adaptation {found.number} of version {found.version} contradicts itself: make it anew")
    return found


class Adapter:
    """A loaded adaptation. `apply` may be called from several threads at once.

    Raises `AdaptationError` when onnxruntime cannot load its graph.
    """

    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation = adaptation
        task, width = adaptation.task, adaptation.width
        self.number = adaptation.number
        weights = np.array(adaptation.weights)
        intercepts = np.array([np.broadcast_to(e.intercept, (width,)) for e in adaptation.experts])
        # The experts' common part: one line, however many they are.
        self._intercept = weights @ intercepts
        self._first, self._slope = float(self._intercept[0]), adaptation.slope
        self._binary, self._bound = task == "binary", adaptation.bound
        self._classes = task == "multiclass"
        self._learners = 1 + max((place for e in adaptation.experts for place in e.learners), default=-1)
        self._session: Any = None
        self._shares = [0.0] * self._learners
        for expert, weight in zip(adaptation.experts, adaptation.weights, strict=True):
            for place in expert.learners:
                self._shares[place] += weight / len(expert.learners)
        if self._learners:
            self._session = _session(adaptation)
            self._outputs = [output.name for output in self._session.get_outputs()][:1]
            self._one_row = OneRow(self._session, width + adaptation.columns, width * self._learners)

    def apply(self, raw: npt.NDArray[Any], x: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """The served output for the champion's: probabilities n by classes, or n values; of `raw`'s own type.

        `x`: n rows of the matrix that the champion's twin reads (None when the adaptation reads none of it). A row is
        answered to the last bit as it is among others; where the raw output is not finite, the served one is not.
        """
        if len(raw) == 1 and not self._classes:
            return self._apply_to_one(raw, x)
        with np.errstate(invalid="ignore", over="ignore"):
            v = link(raw, self.adaptation.task)
            moved = self._intercept + self._slope * v
            if self._session is not None:
                trees = self._trees(v, x).astype(np.float64, copy=False).reshape(len(v), self._learners, -1)
                for place, share in enumerate(self._shares):  # a product of matrices would add in another order for one
                    moved += share * trees[:, place]
            moved = v + np.minimum(np.maximum(moved - v, -self._bound), self._bound)
            return inverse(moved, self.adaptation.task, raw)

    def _apply_to_one(self, raw: npt.NDArray[Any], x: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """The same operations on numbers instead of arrays of one: a third of the time, and most requests are one row.

        The logarithm and the exponential are NumPy's, which differ from those of `math` in the last bit.
        """
        if self._binary:
            p = min(max(float(raw[0, 1]), CLIP), 1 - CLIP)
            v = float(np.log(p / (1 - p)))
        else:
            v = float(raw[0])
        moved = self._first + self._slope * v
        if self._session is not None:
            trees = self._one_row.run(v, None if x is None else x[0])
            for share, said in zip(self._shares, trees, strict=True):
                moved += share * said
        moved = v + min(max(moved - v, -self._bound), self._bound)
        if not self._binary:
            return np.array([moved], raw.dtype)
        answer = np.empty((1, 2), raw.dtype)
        answer[0, 1] = 1 / (1 + np.exp(-moved))
        answer[0, 0] = 1 - answer[0, 1]
        return answer

    def outputs(self, raw: npt.NDArray[Any], x: npt.NDArray[Any] | None) -> Array:
        """What each expert says by itself, on the link scale: experts by n by width."""
        v = link(raw, self.adaptation.task)
        found = np.empty((len(self.adaptation.experts), *v.shape))
        trees = self._trees(v, x) if self._session is not None else np.empty((0, 0))
        for at, expert in enumerate(self.adaptation.experts):
            found[at] = np.asarray(expert.intercept) + expert.slope * v
            for place in expert.learners:
                found[at] += trees[:, place * v.shape[1] : (place + 1) * v.shape[1]] / len(expert.learners)
        return found

    def _trees(self, v: Array, x: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        parts = v.astype(np.float32) if x is None else np.concatenate([v, x], axis=1, dtype=np.float32)
        found: npt.NDArray[Any] = self._session.run(self._outputs, {"input": parts})[0]
        if self._classes:
            found = found.astype(np.float64)
            by_learner = found.reshape(len(found), self._learners, -1)
            by_learner -= log_sum(by_learner)
        return found


def _session(adaptation: Adaptation) -> Any:
    try:
        session = open_session(adaptation.graph, f"adaptation {adaptation.number} of version {adaptation.version}")
    except UnloadableGraph as error:
        raise AdaptationError(str(error)) from error
    given = session.get_inputs()
    fits = len(given) == 1 and given[0].name == "input" and given[0].shape[1] == adaptation.width + adaptation.columns
    if not fits:
        raise AdaptationError(f"adaptation {adaptation.number} reads other columns than its model: make it anew")
    return session


def link(raw: npt.NDArray[Any], task: Task) -> Array:
    """A champion's output (probabilities n by classes, or n values) on the link scale: n by width."""
    if task == "regression":
        return np.asarray(raw, dtype=np.float64).reshape(-1, 1)
    if task == "binary":
        p = np.minimum(np.maximum(raw[:, 1:2].astype(np.float64), CLIP), 1 - CLIP)  # half the time of `clip`
        return np.asarray(np.log(p / (1 - p)))
    logs = np.log(np.clip(raw, CLIP, None, dtype=np.float64))
    return np.asarray(logs - log_sum(logs))


def inverse(v: Array, task: Task, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The output whose link is `v`, in the shape and type of `raw`."""
    if task == "regression":
        return v[:, 0].astype(raw.dtype)
    if task == "binary":
        both = np.empty((len(v), 2), raw.dtype)
        both[:, 1] = 1 / (1 + np.exp(-v[:, 0]))
        both[:, 0] = 1 - both[:, 1]
        return both
    p = np.exp(v - v.max(axis=1, keepdims=True))
    return np.asarray((p / p.sum(axis=1, keepdims=True)).astype(raw.dtype))


def losses(v: Array, truth: npt.NDArray[Any], task: Task, scale: float = 1.0) -> Array:
    """The loss of each row: log loss in nats, or the squared error over `scale` (twice the champion's own mean).

    `v`: (..., n, width) on the link scale; `truth`: n class numbers, or values.
    """
    if task == "regression":
        return np.asarray((v[..., 0] - truth) ** 2 / scale)
    if task == "binary":
        sign = np.where(truth == 1, 1.0, -1.0)
        return np.asarray(np.logaddexp(0, -sign * v[..., 0]))
    logs = v - log_sum(v)
    return np.asarray(-np.take_along_axis(logs, np.broadcast_to(truth, v.shape[:-1])[..., None], -1)[..., 0])


def log_sum(v: Array) -> Array:
    """The logarithm of the summed exponentials of each row, (..., 1): what makes log probabilities sum to 1."""
    top = v.max(axis=-1, keepdims=True)
    return np.asarray(top + np.log(np.exp(v - top).sum(axis=-1, keepdims=True)))
