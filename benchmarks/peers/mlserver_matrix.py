"""MLServer on NumPy: its scikit-learn runtime on the bare estimator and the matrix that the pipeline would make, one
FP32 tensor in JSON; no adaptive batching (large batches only wait for it), no pool of inference processes, metrics or
access log."""

import json
import os
import sys
from pathlib import Path

port, model = int(sys.argv[1]), sys.argv[2]
folder = Path(os.environ["BENCHMARK_FOLDER"])
settings = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": port,
    "grpc_port": int(os.environ["BENCHMARK_SPARE_PORT"]),
    "grpc_max_message_length": 2**26,
    "parallel_workers": 0,
    "metrics_endpoint": None,
    "use_structured_logging": False,
}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model-settings.json").write_text(
    json.dumps({"name": "model", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": model}})
)
os.execv(sys.executable, [sys.executable, str(Path(sys.executable).parent / "mlserver"), "start", str(folder)])
