"""A version's artefact, loaded to answer frames as it answers requests: for judging, timing and adapting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.pipeline import predict
from training.trust import load_pipeline
from training.twin import Rows, Twin

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.manifest import Manifest


class LoadedModel:
    """A version that answers canonical frames: its twin when it has one, else its pipeline."""

    def __init__(self, schema: FeatureSchema, twin: Twin | None, pipeline: Any) -> None:
        self.schema = schema
        self._twin, self._pipeline = twin, pipeline

    @property
    def has_twin(self) -> bool:
        """Whether a twin answers."""
        return self._twin is not None

    @property
    def engine(self) -> Literal["trees", "onnx", "scikit-learn"]:
        """What answers."""
        return "scikit-learn" if self._twin is None else self._twin.engine

    def call(self, frame: pd.DataFrame) -> Callable[[], object]:
        """A call that answers these rows, which are encoded already: what is timed."""
        twin, pipeline, schema = self._twin, self._pipeline, self.schema
        if twin is None:
            return lambda: predict(pipeline, frame, schema)
        rows = self._rows(frame)
        return lambda: twin.predict(rows)

    def answer(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """Probabilities, n by classes; for regression n values."""
        return self.answer_with_matrix(frame)[0]

    def answer_with_matrix(self, frame: pd.DataFrame) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """The answer, and what an adaptation's experts read beside it (n by columns)."""
        rows = self._rows(frame)
        if self._twin is not None:
            return self._twin.predict_with_matrix(rows)
        return predict(self._pipeline, frame, self.schema), rows.numeric()

    def _rows(self, frame: pd.DataFrame) -> Rows:
        return Rows(frame, self.schema.numeric_names, self.schema.categorical_names)


def load_model(folder: Path, manifest: Manifest, schema: FeatureSchema, trusted: tuple[str, ...] = ()) -> LoadedModel:
    """The model in an artefact folder whose manifest was verified. Raises `ArtefactError`."""
    if manifest.twin is not None:
        return LoadedModel(schema, Twin(folder, manifest), None)
    return LoadedModel(schema, None, load_pipeline(folder, trusted))
