"""The twin of a pipeline: the same predictions in microseconds, without scikit-learn or pandas.

It is an ONNX graph, and beside it, where the model is made of trees, what the compiled engine (`training/trees.py`)
answers from. Imported by API workers: NumPy at import, onnxruntime when it is what answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from training.artefact import SCHEMA, TREES, TWIN, ArtefactError
from training.manifest import Column, Manifest, Plan
from training.records import RecordReader
from training.session import UnloadableGraph, open_session
from training.trees import Trees, is_built

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

logger = logging.getLogger("evergreen.twin")

Row = Sequence[str | None]
Engine = Literal["auto", "onnx"]
"""What may answer: compiled trees where there are any, or ONNX alone."""


class Coded(Protocol):
    """A column of text: for each row the place of its value, -1 where it is missing."""

    @property
    def codes(self) -> npt.NDArray[np.int64]: ...
    @property
    def values(self) -> Sequence[str]: ...


class Encoded(Protocol):
    """What a twin reads of a decoded request (`monitoring.decode.Batch` is one)."""

    @property
    def n(self) -> int: ...
    def numeric(self) -> npt.NDArray[np.float32]: ...
    def categorical(self) -> Sequence[Row]: ...
    def coded(self) -> Sequence[Coded] | None:
        """The categorical columns by their distinct values, where they came so."""
        ...

    def tuples(self) -> list[tuple[Any, ...]] | None:
        """Each row's values in the schema's order; None when some are not what a matrix takes."""
        ...


class Codes(dict[str | None, float]):
    """The number a fitted encoder gives each category; `None` is the missing value, anything else is `unknown`."""

    __slots__ = ("unknown",)

    def __init__(self, codes: Mapping[str, float], *, unknown: float, missing: float) -> None:
        super().__init__()
        self.update(codes.items())
        self[None] = missing
        self.unknown = unknown

    def __missing__(self, category: str | None) -> float:
        return self.unknown


class Twin:
    """A loaded twin. `predict` may be called from several threads at once.

    `folder` is an artefact folder, `manifest` its manifest, already verified. Raises `ArtefactError` when the version
    has no twin or onnxruntime cannot load it.
    """

    engine: Literal["trees", "onnx"]
    """What answers."""

    def __init__(self, folder: Path, manifest: Manifest, engine: Engine = "auto") -> None:
        from monitoring.schema import FeatureSchema

        if manifest.twin is None:
            reason = manifest.parity.reason if manifest.parity else "no reason in the manifest"
            raise ArtefactError(f"{folder} has no ONNX twin ({reason}): let the scikit-learn pipeline serve it")
        schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
        trees = None
        if engine == "auto" and manifest.engine == "trees" and is_built():
            trees = _trees(folder, len(manifest.twin.columns), max(len(schema.classes), 1))
        self._open((folder / TWIN).read_bytes(), manifest.twin, schema, str(folder / TWIN), trees)

    @classmethod
    def of(cls, model: bytes, plan: Plan, schema: FeatureSchema, trees: bytes | None = None) -> Twin:
        """A twin from the bytes of an ONNX model and its plan, and of compiled trees: what the exporter checks.

        Raises `ValueError` for trees that cannot be used.
        """
        twin = cls.__new__(cls)
        twin._open(model, plan, schema, "the exported model", None if trees is None else Trees(trees))
        return twin

    def _open(self, model: bytes, plan: Plan, schema: FeatureSchema, what: str, trees: Trees | None) -> None:
        self._trees, self.engine = trees, "onnx" if trees is None else "trees"
        if trees is None:
            try:
                self._session = open_session(model, what)
            except UnloadableGraph as error:
                raise ArtefactError(str(error)) from error
        self._outputs = [plan.output]
        self._single_column = schema.task == "regression"
        self._numeric_names = tuple(schema.numeric_names)
        self._categorical_names = tuple(schema.categorical_names)
        self._dtype = np.dtype(plan.dtype)
        numeric_at = {name: index for index, name in enumerate(self._numeric_names)}
        categorical_at = {name: index for index, name in enumerate(self._categorical_names)}
        self._matrix = plan.layout == "matrix"
        self._places: tuple[int, ...] | None = None
        if self._matrix:
            self._input = plan.input
            columns = list(enumerate(plan.columns))
            self._width = len(columns)
            numbers = [(at, numeric_at[c.feature]) for at, c in columns if c.codes is None]
            encoded = [(at, categorical_at[c.feature], _codes(c)) for at, c in columns if c.codes is not None]
            self._numbers_to = [at for at, _ in numbers]
            self._numbers_from = [at for _, at in numbers]
            self._encoded = encoded
            # The order our own pipelines have: all numbers as they come, then all categories as they come.
            self._in_order = [at for _, at in numbers] == list(range(len(self._numeric_names))) and [
                at for at, *_ in numbers
            ] == list(range(len(numbers)))
            self._codes_in_order: list[Codes] | None = None
            if self._trees is not None:
                from training._trees import encode

                names = list(schema.names)
                self._compiled, self._places = encode, tuple(names.index(c.feature) for _, c in columns)
                tables = {at: (codes, codes.unknown) for at, _, codes in encoded}
                self._tables = tuple(tables.get(at) for at, _ in columns)
            if self._in_order and [at for _, at, _ in encoded] == list(range(len(self._categorical_names))):
                self._codes_in_order = [codes for *_, codes in encoded]
        else:
            self._missing_category = plan.missing_category
            self._inputs: list[tuple[str, bool, int]] = [
                (i.input, True, numeric_at[i.feature])
                if i.type == "float"
                else (i.input, False, categorical_at[i.feature])
                for i in plan.inputs
            ]

    def reader(self, schema: FeatureSchema, max_chars: int) -> RecordReader | None:
        """What reads records in JSON into the matrix of compiled trees; None where nothing can.

        A category of more than `max_chars` characters is not read.
        """
        if self._places is None:
            return None
        try:
            return RecordReader(schema, self._places, self._tables, max_chars)
        except (ImportError, ValueError) as error:
            logger.info("large bodies are read by the strict decoder: %s", error)
            return None

    def predict(self, batch: Encoded) -> npt.NDArray[Any]:
        """Probabilities, n by classes in the schema's order; for regression n values. float64 of compiled
        trees, and of a graph that computes in it; else float32."""
        if self._matrix:
            return self.predict_matrix(self._matrix_of(batch))
        return self._run(self._columns(batch.numeric(), batch.categorical()))

    def predict_with_matrix(self, batch: Encoded) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """The same, and what an adaptation reads beside it (float32, n by columns): the matrix the model itself read,
        or, when it reads its columns one by one, the numeric features."""
        if not self._matrix:
            numeric = batch.numeric()
            return self._run(self._columns(numeric, batch.categorical())), numeric
        matrix = self._matrix_of(batch)
        return self.predict_matrix(matrix), matrix.astype(np.float32, copy=False)

    def predict_matrix(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same for the matrix that a model of layout "matrix" reads: rows by its columns."""
        if self._trees is None:
            return self._run({self._input: matrix})
        answer = self._trees.predict(matrix)
        return answer.reshape(-1) if self._single_column else answer

    def _run(self, feed: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        answer: npt.NDArray[Any] = self._session.run(self._outputs, feed)[0]
        return answer.reshape(-1) if self._single_column else answer

    def predict_frame(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """The same for a canonical frame (see `FeatureSchema.canonical`)."""
        return self.predict(Rows(frame, self._numeric_names, self._categorical_names))

    def _matrix_of(self, batch: Encoded) -> npt.NDArray[Any]:
        places = self._places
        tuples = None if places is None else batch.tuples()
        if places is None or tuples is None:
            coded = batch.coded() if self._encoded else None
            if coded is not None:
                return self._of_codes(batch.numeric(), coded)
            return self.encode(batch.numeric(), batch.categorical() if self._encoded else ())
        matrix = np.empty((len(tuples), self._width), np.float32)
        self._compiled(tuples, places, self._tables, matrix)
        return matrix

    def _of_codes(self, numeric: npt.NDArray[np.float32], categorical: Sequence[Coded]) -> npt.NDArray[Any]:
        matrix = np.empty((len(numeric), self._width), self._dtype)
        matrix[:, self._numbers_to] = numeric[:, self._numbers_from]
        for to, source, codes in self._encoded:
            column = categorical[source]
            table = np.array([*map(codes.__getitem__, column.values), codes[None]], self._dtype)
            matrix[:, to] = table[column.codes]
        return matrix

    def encode(self, numeric: npt.NDArray[np.float32], categorical: Sequence[Row]) -> npt.NDArray[Any]:
        """The matrix the ONNX model reads: rows by its columns."""
        if not self._encoded and self._in_order and self._dtype == np.float32:
            return numeric
        rows = len(numeric)
        matrix = np.empty((rows, self._width), self._dtype)
        if self._in_order:
            numbers = len(self._numbers_to)
            matrix[:, :numbers] = numeric
            if rows == 1 and self._codes_in_order is not None:
                at = numbers
                for codes, value in zip(self._codes_in_order, categorical[0], strict=True):
                    matrix[0, at] = codes[value]  # a quarter of the time of assigning a list to the slice
                    at += 1
                return matrix
        else:
            matrix[:, self._numbers_to] = numeric[:, self._numbers_from]
        if self._encoded:
            by_column = list(zip(*categorical, strict=True))
            for to, source, codes in self._encoded:
                matrix[:, to] = list(map(codes.__getitem__, by_column[source]))
        return matrix

    def _columns(self, numeric: npt.NDArray[np.float32], categorical: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
        feed: dict[str, npt.NDArray[Any]] = {}
        by_column = list(zip(*categorical, strict=True)) if self._categorical_names else []
        for name, is_number, source in self._inputs:
            if is_number:
                feed[name] = numeric[:, source : source + 1]
            else:
                missing = self._missing_category
                values = [missing if value is None else value for value in by_column[source]]
                feed[name] = np.array(values, dtype=object).reshape(-1, 1)
        return feed


def _trees(folder: Path, features: int, columns: int) -> Trees | None:
    """The compiled trees in an artefact folder; None, and a word in the log, when they cannot be used."""
    try:
        trees = Trees((folder / TREES).read_bytes())
        if (trees.features, trees.columns) == (features, columns):
            return trees
        problem = f"{trees.features} features and {trees.columns} columns, expected {features} and {columns}"
    except (OSError, ValueError) as error:
        problem = str(error)
    logger.warning("%s: %s; ONNX answers", folder / TREES, problem)
    return None


def _codes(column: Column) -> Codes:
    return Codes(column.codes or {}, unknown=_number(column.unknown), missing=_number(column.missing))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)  # JSON has no NaN: the manifest writes null


class Rows:
    """The rows of a canonical frame as a decoded request would hold them."""

    def __init__(self, frame: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]) -> None:
        self.n = len(frame)
        self._numeric: npt.NDArray[np.float32] = np.ascontiguousarray(frame[list(numeric)], dtype=np.float32)
        columns = [[value if isinstance(value, str) else None for value in frame[name]] for name in categorical]
        self._categorical: list[tuple[str | None, ...]] = list(zip(*columns, strict=True)) if columns else [()] * self.n

    def numeric(self) -> npt.NDArray[np.float32]:
        return self._numeric

    def tuples(self) -> None:
        return None  # its numbers are a matrix already

    def coded(self) -> None:
        return None

    def categorical(self) -> list[tuple[str | None, ...]]:
        return self._categorical
