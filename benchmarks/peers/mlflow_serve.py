"""MLflow: `mlflow models serve`, one uvicorn worker (uvloop, httptools, no access log), local environment, no signature
to enforce, `predict_proba` as the function served, rows as `dataframe_split`. It has no batching of requests."""

import os
import sys
from pathlib import Path

import joblib
import mlflow.sklearn

os.environ |= {"UVICORN_LOOP": "uvloop", "UVICORN_HTTP": "httptools", "UVICORN_ACCESS_LOG": "false"}
os.environ |= {"UVICORN_LOG_LEVEL": "warning"}
port, model = sys.argv[1:]
folder = str(Path(os.environ["BENCHMARK_FOLDER"], "model"))
mlflow.sklearn.save_model(
    joblib.load(model),
    folder,
    pyfunc_predict_fn="predict_proba",
    serialization_format="cloudpickle",
    pip_requirements=[],
)
options = ["--host", "127.0.0.1", "--port", port, "--workers", "1", "--env-manager", "local"]
os.execv(sys.executable, [sys.executable, "-m", "mlflow", "models", "serve", "-m", folder, *options])
