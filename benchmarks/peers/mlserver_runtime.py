"""MLServer: its scikit-learn runtime with the pandas codec (one named input a column), adaptive batching (32 requests,
5 ms), no pool of inference processes (`parallel_workers` 0: one core), no gRPC traffic, metrics or access log."""

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
    "parallel_workers": 0,
    "metrics_endpoint": None,
    "use_structured_logging": False,
}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model-settings.json").write_text(
    json.dumps(
        {
            "name": "model",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "max_batch_size": 32,
            "max_batch_time": 0.005,
            "parameters": {"uri": model},
        }
    )
)
os.execv(sys.executable, [sys.executable, str(Path(sys.executable).parent / "mlserver"), "start", str(folder)])
