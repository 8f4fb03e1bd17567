"""BentoML's adaptive batching: the plain way with `batchable=True`, batches of up to 4,000 rows."""

import os

import bentoml
import joblib
import numpy as np
import pandas as pd
from bentoml_plain import QUIET


@bentoml.service(**QUIET)
class Predictor:
    def __init__(self) -> None:
        self.pipeline = joblib.load(os.environ["BENCHMARK_MODEL"])

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=4000, max_latency_ms=10_000)
    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        return self.pipeline.predict_proba(frame)
