"""BentoML's adaptive batching: `@bentoml.api(batchable=True)` on a list of records, batches of up to 4,000 of them, one
worker, with access log, metrics and tracing off.

Not on a `pd.DataFrame`: 1.4.39 takes its `shape` for the size of the batch ("unsupported operand type(s) for +: 'int'
and 'tuple'" in `marshal/dispatcher.py`), and answers nothing but 503.
"""

import os
from typing import Any

import bentoml
import joblib
import pandas as pd
from bentoml_plain import QUIET


@bentoml.service(**QUIET)
class Predictor:
    def __init__(self) -> None:
        self.pipeline = joblib.load(os.environ["BENCHMARK_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=4000, max_latency_ms=10_000)
    def predict(self, records: list[dict[str, Any]]) -> list[list[float]]:
        return self.pipeline.predict_proba(pd.DataFrame(records)).tolist()
