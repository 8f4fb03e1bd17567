"""Ray Serve: one replica behind one proxy, `@serve.batch` (32 requests, 5 ms), `RAY_SERVE_THROUGHPUT_OPTIMIZED=1`, no
access log, no dashboard, no usage reports."""

import os
import signal
import sys

os.environ |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

import joblib
import pandas as pd
import ray
from ray import serve


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},
)
class Predictor:
    def __init__(self, model):
        self.pipeline = joblib.load(model)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def predict(self, requests):
        frame = pd.DataFrame([record for request in requests for record in request["records"]])
        probabilities = self.pipeline.predict_proba(frame).tolist()
        answers, at = [], 0
        for request in requests:
            n = len(request["records"])
            answers.append({"probabilities": probabilities[at : at + n]})
            at += n
        return answers

    async def __call__(self, request):
        return await self.predict(await request.json())


ray.init(
    num_cpus=1,
    include_dashboard=False,
    log_to_driver=False,
    object_store_memory=200 * 2**20,
    _temp_dir=os.environ["BENCHMARK_FOLDER"],
)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False})
serve.run(Predictor.bind(sys.argv[2]), route_prefix="/predict")
signal.pause()
