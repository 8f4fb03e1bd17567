"""The floor: uvicorn (uvloop, httptools, no access log) and ONNX Runtime with one thread, nothing else.

No record, no metrics, no validation, no ids: JSON in, codes looked up, one run of the champion's model.onnx, JSON out.
"""

import json
import sys

import msgspec
import numpy as np
import onnxruntime
import uvicorn


class Floor:
    """A raw ASGI application."""

    def __init__(self, folder):
        with open(f"{folder}/manifest.json") as file:
            plan = json.load(file)["twin"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options)
        self.outputs, self.input = [plan["output"]], plan["input"]
        self.names = [column["feature"] for column in plan["columns"]]
        self.codes = [c["codes"] | {None: c["missing"]} if "codes" in c else None for c in plan["columns"]]
        self.decode = msgspec.json.Decoder().decode
        self.encode = msgspec.json.Encoder().encode

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        records = self.decode(body)["records"]
        columns = [
            [record[name] for record in records] if codes is None else [codes[record[name]] for record in records]
            for name, codes in zip(self.names, self.codes, strict=True)
        ]
        matrix = (
            np.array(columns, np.float32).T if len(records) > 1 else np.array([[c[0] for c in columns]], np.float32)
        )
        answer = self.encode({"probabilities": self.session.run(self.outputs, {self.input: matrix})[0].tolist()})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


uvicorn.run(
    Floor(sys.argv[2]),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    loop="uvloop",
    http="httptools",
    lifespan="off",
    ws="none",
    access_log=False,
    log_level="warning",
)
