"""BentoML's plain way: `@bentoml.api` on a pandas DataFrame, one worker, with access log, metrics and tracing off."""

import os

import bentoml
import joblib
import numpy as np
import pandas as pd

QUIET = {
    "workers": 1,
    "traffic": {"timeout": 60},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
    "tracing": {"excluded_urls": [".*"]},
}


@bentoml.service(**QUIET)
class Predictor:
    def __init__(self) -> None:
        self.pipeline = joblib.load(os.environ["BENCHMARK_MODEL"])

    @bentoml.api
    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        return self.pipeline.predict_proba(frame)
