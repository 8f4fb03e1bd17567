"""A stand-in for a running Evergreen that speaks its HTTP contract: real requests over a real socket, no model.

It decodes with the real decoders, keeps what it was sent, and does what it is told about versions and failures.
`tests/service/test_management_contract.py` holds it to the answers of the real service.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Any
from urllib.parse import parse_qs

import msgspec
import uvicorn
from pydantic import ValidationError

from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.drift import DriftReport, FeatureDrift
from monitoring.json_schema import json_schema
from monitoring.maturity import Maturity
from monitoring.quality import Quality
from monitoring.schema import FeatureSchema
from service.serving.answer import Feedback
from service.serving.feedback import check_labels
from service.serving.management.adaptation import Switch
from service.serving.management.managed import LARGEST_ID, Why
from service.serving.management.sentence import KnownQuality, Standing, sentence
from service.serving.request import Reject, check_content_type
from training.manifest import Slice, Slices

TOKEN = "a-token-of-the-tests"
VERSIONS = (3, 2, 1)


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
        self.paused = False
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
        plain = isinstance(answer, str)
        content = answer.encode() if plain else json.dumps(answer).encode()
        headers = [
            (b"content-type", b"text/plain" if plain else b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def answer(self, scope: Any, body: bytes) -> tuple[int, Any]:
        try:
            return self.routed(scope, body)
        except (InvalidRequest, Reject) as error:
            return error.status, {"error": error.message}
        except (ValidationError, msgspec.MsgspecError) as error:
            return 400, {"error": str(error)}

    def routed(self, scope: Any, body: bytes) -> tuple[int, Any]:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        match scope["method"], scope["path"].strip("/").split("/"):
            case "GET", ["schema"]:
                return 200, {"model": "evergreen", "version": 1, **json_schema(self.schema)}
            case "GET", ["readyz"]:
                return 200, "\n"
            case "POST", ["predict" | "feedback" as route]:
                check_content_type(headers.get("content-type", "application/json").encode())
                return self.predict(body) if route == "predict" else self.feedback(body)
            case method, ["predict" | "feedback"]:
                return 405, {"error": f"{scope['path']} takes POST, not {method}"}
            case method, ["manage", *rest]:
                kind, _, token = headers.get("authorization", "").partition(" ")
                if kind.lower() != "bearer":
                    return 401, {"error": "no bearer token"}
                if token != TOKEN:
                    return 403, {"error": "this bearer token is none of this deployment"}
                return self.manage(method, rest, parse_qs(scope["query_string"].decode()), body)
            case _:
                return 404, {"error": f"{scope['path']}: no such route"}

    def predict(self, body: bytes) -> tuple[int, Any]:
        self.predict_requests += 1
        refused = self.refuses(self.predict_requests)
        if refused:
            return refused[0], {"error": refused[1]}
        batch = self.decoder.decode(body)
        version = self.version(len(self.ids))
        ids = batch.ids or [f"id-{len(self.ids) + i}" for i in range(batch.n)]
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
        labels = msgspec.json.decode(body, type=Feedback).labels
        if not labels:
            raise Reject(400, "labels: empty")
        check_labels(labels, self.schema, time.time())
        for label in labels:
            self.labels[label.id] = label.label
            self.label_order.append(label.id)
        return 202, {"accepted": len(labels)}

    def manage(self, method: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        match method, rest:
            case "GET", ["status"]:
                return 200, self.status()
            case "GET", ["models"]:
                quality = {"metric": "auc", "challenger": 0.83, "champion": None, "rows": 1000, "error": 0.01}
                model = {"created_at": 1.7e9, "origin": "bootstrap", "estimator": "HistGradientBoosting"}
                model |= {"engine": "onnx", "quality": {**quality, "metrics": {"auc": 0.83}}, "reproducible": True}
                model |= {"snapshot": "73f7d9" + "0" * 58, "tags": ["fees-2026"]}
                models = [{"version": version, **model} for version in VERSIONS]
                return 200, {"model": "evergreen", "champion": 2, "previous": 1, "announced": None, "models": models}
            case "GET", ["runs"]:
                limit = whole(query.get("limit", ["50"])[0], 1000)
                asked = {name: query[name][0] for name in ("kind", "trigger") if name in query}
                found = [self.run(number) for number in range(len(self.queued), 0, -1)]
                found = [run for run in found if asked.items() <= run.items()]
                found = [run for run in found if run["created_at"] >= seconds(query.get("since", ["0"])[0])]
                if flag(query.get("folded", ["false"])[0]):
                    found = [{**run, "count": 1, "first_id": run["id"], "first_at": run["created_at"]} for run in found]
                return 200, {"runs": found[:limit]}
            case "GET", ["runs", number]:
                known = whole(number) <= len(self.queued)
                return (200, self.run(int(number))) if known else (404, {"error": f"run {number} does not exist"})
            case "GET", ["drift"]:
                whole(query.get("limit", ["1"])[0], 1000)
                return 200, {"checks": [{"id": 1, **self.status()["last_check"]}]}
            case "GET", ["replicas"]:
                return 200, {"replicas": self.status()["replicas"]}
            case "POST", ["replicas", home, "gone"]:
                why = reason(body)
                if home not in ("aaaa", "beta"):
                    return 404, {"error": f"{home!r} is no home of this deployment"}
                return self.queue("gone", why, home)
            case "POST", ["models"]:
                if not body:
                    raise Reject(400, "the body is empty: send one skops file")
                if not body.startswith(b"PK"):
                    raise Reject(400, "the pushed file is not a skops file: write it with skops.io.dump(model, path)")
                return self.queue("push", query.get("why", [""])[0], body)
            case "POST", ["models", version, "promote"]:
                why = reason(body)
                if whole(version) not in VERSIONS:
                    return 404, {"error": f"there is no version {version}"}
                return self.queue("promote", why, int(version))
            case "GET", ["adaptation"]:
                whole(query.get("limit", ["20"])[0], 1000)
                made = {"version": 2, "number": 17, "at": 1.7e9, "kind": "made", "who": "loop", "why": "a check"}
                weights = {"identity": 0.3, "residuals": 0.7, "shift-300": 0.001}
                made |= {"digest": "0" * 64, "record": {"weights": weights}, "weights": weights}
                return 200, {"version": 2, "enabled": True, "in_force": 17, "adaptations": [made]}
            case "POST", ["adaptation"]:
                asked = Switch.model_validate_json(body)
                return self.queue("adaptation", asked.why, asked.state)
            case "POST", ["resume"] if not self.paused:
                reason(body)
                return 409, {"error": "the loop is not paused: nothing is to be resumed"}
            case "POST", ["retrain" | "rollback" | "pause" | "resume" as kind]:
                return self.queue(kind, reason(body), None)
            case _, [
                "status"
                | "models"
                | "runs"
                | "drift"
                | "retrain"
                | "rollback"
                | "adaptation"
                | "pause"
                | "resume"
                | "replicas"
            ]:
                return 405, {"error": "Method Not Allowed"}
            case _:
                return 404, {"error": "no such route"}

    def queue(self, kind: str, why: str, payload: Any) -> tuple[int, Any]:
        self.queued.append((kind, why, payload))
        return 202, {"run": len(self.queued)}

    def run(self, number: int, *, whole: bool = True) -> dict[str, Any]:
        kind, why, _ = self.queued[number - 1]
        state, outcome = self.outcomes.get(kind, ("done", "promoted"))
        shown = {
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
        }
        return shown | ({"record": {"reasons": ["the challenger is better by 0.03 [auc]"]}} if whole else {})

    def replica(self, home: str, host: str, **other: Any) -> dict[str, Any]:
        found = {"home": home, "host": host, "replica": f"{host}:1", "release": "0.2.0", "serving": 2}
        found |= {"why_not_ready": "", "spool_bytes": 0, "lag_s": 0.0, "ahead_s": 0.0, "seen_s": 0.4}
        return {**found, "leads": False, "gone": False, "away": False, "here": False, **other}

    def status(self) -> dict[str, Any]:
        moved = FeatureDrift("income", "wasserstein", 0.31, 0.1, True, causes=("distribution",))
        drift = DriftReport((moved,), None, 0.25, True, ("income moved",), reference_rows=2000, current_rows=1000)
        quality = Quality("auc", 0.71, True, {"auc": 0.71}, 500, error=0.02, usable=True)
        labels = Maturity(3600.0, 1.7e9, True, 4210, coverage=0.83, waiting=312)
        stands = Standing(version=2, served_since=1.7e9, quality=KnownQuality(state="lost", metric="auc", value=0.71))
        return {
            "sentence": sentence(stands, 1.7e9, UTC),
            "model": "evergreen",
            "champion": 2,
            "previous": 1,
            "announced": None,
            "served_since": 1.7e9,
            "quality": msgspec.to_builtins(stands.quality),
            "coverage": 0.83,
            "delay_s": 3600.0,
            "next": {"what": "a check", "at": 1.7e9 + 60},
            "paused": None,
            "alerts": ["api-2 cannot load version 2: digest differs"],
            "engine": "onnx",
            "adaptation": 17,
            "doubts": ["log loss 0.7, always answering with the classes' shares has 0.69: it has learnt nothing"],
            "unadapted": {"api-2": "2-17: was changed"},
            "ready": True,
            "leader": True,
            "workers": [
                {"replica": "here", "slot": "api-1", "serving": 2, "ready": [1, 2], "failed": {}},
                {"replica": "here", "slot": "api-2", "serving": 1, "ready": [1], "failed": {"2": "digest differs"}},
            ],
            "replicas": [
                self.replica("aaaa", "alpha", leads=True, here=True),
                self.replica("bbbb", "beta", serving=1, why_not_ready="version 2 is being fetched", ahead_s=-61.0),
                self.replica("cccc", "gamma", spool_bytes=5_120, lag_s=61.5, seen_s=7300.0, away=True),
            ],
            "spool_bytes": 12_345,
            "drain_lag_s": 0.2,
            "last_check": {
                "at": 1.7e9,
                "version": 2,
                "drift": msgspec.to_builtins(drift),
                "quality": {
                    **msgspec.to_builtins(quality),
                    "state": "lost",
                    "words": "quality lost: served AUC 0.71 on 500 rows answered, 0.83 on the champion's holdout",
                    "labels": msgspec.to_builtins(labels),
                    "raw": None,
                    "answered": 500,
                    "until": 1.7e9,
                    "compared": [],
                    "slices": msgspec.to_builtins(
                        Slices("auc", 500, 0.71, (Slice("sex=male", True, 240, 0.68, 0.03),))
                    ),
                },
                "decision": {
                    "train": True,
                    "trigger": "drift",
                    "reasons": ["drift in 25% of the features"],
                    "due": False,
                    "ahead": {"new_rows": 40, "rows_due": 140, "due_at": None, "not_before": None},
                },
            },
            "runs": [self.run(number, whole=False) for number in range(len(self.queued), 0, -1)][:5],
        }


def whole(text: str, most: int = LARGEST_ID) -> int:
    """A number from 1 to `most`. Raises `Reject`."""
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise Reject(400, f"expected a number from 1 to {most}, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """A moment since 1970. Raises `Reject`."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise Reject(400, f"expected seconds since 1970, got {text}")
    return found


def flag(text: str) -> bool:
    """True or false. Raises `Reject`."""
    if text.lower() not in ("true", "false"):
        raise Reject(400, f"expected true or false, got {text}")
    return text.lower() == "true"


def reason(body: bytes) -> str:
    """Why a write is asked for, "" without a body. Raises pydantic's `ValidationError`."""
    return Why.model_validate_json(body).why if body else ""


@contextmanager
def listening(app: Any, port: int = 0) -> Iterator[str]:
    """The address of a real server on the loopback interface in front of an ASGI application."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="critical",
        log_config=None,
        lifespan="off",
        ws="none",
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


@contextmanager
def serving(stand_in: StandIn, port: int = 0) -> Iterator[StandIn]:
    """The stand-in behind a real server; `stand_in.url` is its address."""
    with listening(stand_in, port) as stand_in.url:
        yield stand_in
