"""LitServe: one worker and one API server with uvloop, batches of up to 32 requests (5 ms), the fast queue (ZeroMQ), no
request tracking, no access log."""

import sys

import joblib
import litserve
import pandas as pd


class Api(litserve.LitAPI):
    def setup(self, device):
        self.pipeline = joblib.load(sys.argv[2])

    def decode_request(self, request):
        return request["records"]

    def batch(self, inputs):
        return inputs

    def predict(self, requests):
        probabilities = self.pipeline.predict_proba(
            pd.DataFrame([record for records in requests for record in records])
        )
        answers, at = [], 0
        for records in requests:
            answers.append(probabilities[at : at + len(records)])
            at += len(records)
        return answers

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=32, batch_timeout=0.005),
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        fast_queue=True,
        track_requests=False,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        loop="uvloop",
        access_log=False,
    )
