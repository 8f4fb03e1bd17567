"""BentoML on NumPy: `@bentoml.api` on an `.npy` file (its JSON for `np.ndarray` makes a Python number of each value,
and it refuses pickles of clients), the bare estimator on the matrix that the pipeline would make, the answer an `.npy`
file; one worker, with access log, metrics and tracing off."""

import io
import os
from pathlib import Path
from typing import Annotated

import bentoml
import joblib
import numpy as np
from bentoml.validators import ContentType
from bentoml_plain import QUIET


@bentoml.service(**QUIET)
class Predictor:
    def __init__(self) -> None:
        self.estimator = joblib.load(os.environ["BENCHMARK_MODEL"])

    @bentoml.api
    def predict(self, matrix: Annotated[Path, ContentType("application/octet-stream")], /) -> bytes:
        answer = io.BytesIO()
        np.save(answer, self.estimator.predict_proba(np.load(matrix)))
        return answer.getvalue()
