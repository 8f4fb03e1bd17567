"""A stand-in for a running Evergreen that speaks its HTTP contract: real requests over a real socket, no model.

It decodes with the real decoder, keeps what it was sent, and does what it is told about versions and failures.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.json_schema import json_schema
from monitoring.schema import FeatureSchema

TOKEN = "a-token-of-the-tests"


class StandIn:
    """What the service was sent, and how it shall answer."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.decoder = RequestDecoder(schema, 10_000)
        self.records: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.labels: dict[str, Any] = {}
        self.label_order: list[str] = []
        self.version: Callable[[int], int] = lambda row: 1
        """Version that answers, from the number of rows answered before."""
        self.refuses: Callable[[int], tuple[int, str] | None] = lambda request: None
        """(status, error) that a `/predict` request, by its number, is answered with instead."""
        self.refuses_labels = False
        self.predict_requests = 0
        self.queued: list[tuple[str, str, Any]] = []
        """(kind, why, payload) of each write to /manage."""
        self.outcomes: dict[str, tuple[str, str | None]] = {}
        """kind -> (state, outcome) its runs end with."""
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = self.answer(scope, body)
        content = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def answer(self, scope: Any, body: bytes) -> tuple[int, Any]:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        match scope["method"], scope["path"].strip("/").split("/"):
            case "GET", ["schema"]:
                return 200, {"model": "evergreen", "version": 1, **json_schema(self.schema)}
            case "GET", ["readyz"]:
                return 200, {}
            case "POST", ["predict"]:
                return self.predict(body)
            case "POST", ["feedback"]:
                return self.feedback(body)
            case method, ["manage", *rest]:
                if headers.get("authorization") != f"Bearer {TOKEN}":
                    return 401, {"error": "no bearer token"}
                return self.manage(method, rest, parse_qs(scope["query_string"].decode()), body)
            case _:
                return 404, {"error": f"{scope['path']}: no such route"}

    def predict(self, body: bytes) -> tuple[int, Any]:
        self.predict_requests += 1
        refused = self.refuses(self.predict_requests)
        if refused:
            return refused[0], {"error": refused[1]}
        try:
            batch = self.decoder.decode(body)
        except InvalidRequest as error:
            return error.status, {"error": error.message}
        version = self.version(len(self.ids))
        ids = [f"id-{len(self.ids) + i}" for i in range(batch.n)]
        self.ids += ids
        self.records += json.loads(body)["records"]
        answer: dict[str, Any] = {"model": "evergreen", "version": version, "ids": ids}
        if self.schema.task == "regression":
            return 200, {**answer, "predictions": [0.5] * batch.n}
        first, classes = self.schema.classes[0], self.schema.classes
        shares = [[1 / len(classes)] * len(classes)] * batch.n
        return 200, {**answer, "predictions": [first] * batch.n, "probabilities": shares, "classes": classes}

    def feedback(self, body: bytes) -> tuple[int, Any]:
        if self.refuses_labels:
            return 503, {"error": "the record is full"}
        labels = json.loads(body)["labels"]
        for label in labels:
            wrong = self.schema.check_label(label["label"])
            if wrong:
                return 400, {"error": wrong}
            self.labels[label["id"]] = label["label"]
            self.label_order.append(label["id"])
        return 202, {"accepted": len(labels)}

    def manage(self, method: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        match method, rest:
            case "GET", ["status"]:
                return 200, self.status()
            case "GET", ["models"]:
                quality = {"metric": "auc", "value": 0.83, "rows": 1000}
                model = {"version": 1, "created_at": 1.7e9, "origin": "bootstrap", "estimator": "HistGradientBoosting"}
                models = [{**model, "engine": "onnx", "quality": quality}]
                return 200, {"model": "evergreen", "champion": 1, "previous": None, "announced": None, "models": models}
            case "GET", ["runs"]:
                limit = int(query.get("limit", ["50"])[0])
                return 200, {"runs": [self.run(number) for number in range(len(self.queued), 0, -1)][:limit]}
            case "GET", ["runs", number]:
                known = 1 <= int(number) <= len(self.queued)
                return (200, self.run(int(number))) if known else (404, {"error": f"run {number} does not exist"})
            case "GET", ["drift"]:
                return 200, {"checks": [self.status()["last_check"]]}
            case "POST", ["models"]:
                return self.queue("push", query.get("why", [""])[0], body)
            case "POST", ["models", version, "promote"]:
                return self.queue("promote", json.loads(body)["why"], int(version))
            case "POST", ["retrain" | "rollback" as kind]:
                return self.queue(kind, json.loads(body)["why"], None)
            case _:
                return 404, {"error": "no such route"}

    def queue(self, kind: str, why: str, payload: Any) -> tuple[int, Any]:
        self.queued.append((kind, why, payload))
        return 202, {"run": len(self.queued)}

    def run(self, number: int) -> dict[str, Any]:
        kind, why, _ = self.queued[number - 1]
        state, outcome = self.outcomes.get(kind, ("done", "promoted"))
        return {
            "id": number,
            "kind": kind,
            "state": state,
            "outcome": outcome,
            "trigger": "manual",
            "who": "someone",
            "why": why,
            "created_at": 1.7e9,
            "started_at": 1.7e9 + 1,
            "finished_at": 1.7e9 + 5,
            "version": 2,
            "record": {"reasons": ["the challenger is better by 0.03 [auc]"]},
        }

    def status(self) -> dict[str, Any]:
        moved = {"name": "income", "test": "wasserstein", "score": 0.31, "threshold": 0.1, "drifted": True, "note": ""}
        return {
            "model": "evergreen",
            "champion": 2,
            "previous": 1,
            "announced": None,
            "engine": "onnx",
            "workers": [
                {"replica": "here", "slot": "api-1", "serving": 2, "ready": [1, 2], "failed": {}},
                {"replica": "here", "slot": "api-2", "serving": 1, "ready": [1], "failed": {"2": "digest differs"}},
            ],
            "spool_bytes": 12_345,
            "drain_lag_s": 0.2,
            "last_check": {
                "at": 1.7e9,
                "version": 2,
                "drift": {"detected": True, "share": 0.25, "features": [moved], "skipped": None},
                "quality": {"metric": "auc", "value": 0.71, "rows": 500},
                "decision": {"train": True, "reasons": ["drift in 25 % of the features"]},
            },
            "runs": [self.run(number) for number in range(1, len(self.queued) + 1)],
        }


@contextmanager
def serving(stand_in: StandIn, port: int = 0) -> Iterator[StandIn]:
    """The stand-in behind a real server on the loopback interface; `stand_in.url` is its address."""
    config = uvicorn.Config(
        stand_in, host="127.0.0.1", port=port, log_level="critical", lifespan="off", ws="none", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the stand-in did not start"
        time.sleep(0.005)
    stand_in.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield stand_in
    finally:
        server.should_exit = True
        thread.join(timeout=10)
