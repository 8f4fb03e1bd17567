"""`/manage`: what people do to the service. `gate.py` has asked for the token before; each write is a row in `runs`.

Slow work is never done inside the request: it is queued as a run, and the controller that holds the lease does it.
"""

from __future__ import annotations

import asyncio
import fcntl
import secrets
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as AnyHTTPException

from monitoring.store import connect
from monitoring.window import label_status
from service.handover import read_reports, read_status
from training.manifest import FormatError
from training.registry import Registry, UnknownVersion, Version
from training.rollout import live_workers
from training.runs import Run, Runs, UnknownRun

if TYPE_CHECKING:
    import sqlalchemy as sa

    from service.serving.worker import Worker

LARGEST_ID: Final = 2**31 - 1
"""Of versions, runs and checks: a column of 32 bits."""


def _storable(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("has a zero character or half of a surrogate pair, which no database can store")
    return text


Text = Annotated[str, AfterValidator(_storable)]
VersionId = Annotated[int, InPath(ge=1, le=LARGEST_ID)]
RowId = Annotated[int, InPath(ge=1, le=LARGEST_ID)]


class Why(BaseModel):
    """The reason given for a write; it stands in the run."""

    model_config = ConfigDict(extra="forbid")
    why: Text = Field("", max_length=1000)


class Erasure(Why):
    """Whom to forget: prediction `ids`, or everyone whose record has this `value` of the `feature`; not both."""

    ids: list[Annotated[Text, Field(min_length=1, max_length=512)]] = Field([], max_length=10_000)
    feature: Text = Field("", max_length=1000)
    value: (
        Annotated[Text, Field(max_length=10_000)]
        | bool
        | Annotated[int, Field(ge=-(2**63), lt=2**63)]
        | Annotated[float, Field(allow_inf_nan=False)]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_way(self) -> Erasure:
        if bool(self.ids) == bool(self.feature) or (self.feature != "") != (self.value not in (None, "")):
            raise ValueError('send {"ids": ["…"]} or {"feature": "name", "value": …}')
        return self


class Accepted(BaseModel):
    """The run that will do it: poll `GET /manage/runs/{run}`."""

    run: int


class Error(BaseModel):
    """What, where, and what to do."""

    error: str


MODEL_FILE: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    }
}
TROUBLE: Final = {
    400: "Malformed: the message names the place",
    401: "No bearer token",
    403: "A token of no or another deployment, or without the scope",
    404: "No such version, run, check or route",
    405: "Another method",
    408: "The request was not whole in time",
    409: "Not possible as things stand",
    413: "Too many bytes",
    500: "An error of ours: the request id stands in the log",
    503: "The store does not answer: see Retry-After",
}


@lru_cache(maxsize=1)
def application(worker: Worker) -> FastAPI:
    """The management API of this worker's deployment as an ASGI application."""
    settings = worker.settings
    engine: sa.Engine = connect(settings.store_url)
    runs = Runs(engine)
    registry = Registry(engine, settings.models_dir, settings.model.name)

    app = FastAPI(
        title=f"Evergreen management: {settings.model.name}",
        description=__doc__ or "",
        responses={status: {"model": Error, "description": text} for status, text in TROUBLE.items()},
        root_path="",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url="/manage/openapi.json",
    )

    def queue(kind: str, why: str, request: Request, payload: dict[str, Any] | None = None) -> Accepted:
        who = request.state.who
        return Accepted(run=runs.queue(kind, trigger="manual", who=who, why=why, now=time.time(), payload=payload))

    @app.get("/manage/models")
    def models() -> dict[str, Any]:
        """All versions, newest first, and which of them runs under which alias."""
        live = registry.live()
        return {
            "model": settings.model.name,
            "champion": live.champion,
            "previous": live.previous,
            "announced": live.announced,
            "models": [_version(info) for info in registry.list()],
        }

    @app.get("/manage/models/{version}")
    def model(version: VersionId) -> dict[str, Any]:
        """One version with its manifest: data, parameters, seed, libraries, gates."""
        return _version(registry.get(version), whole=True)

    @app.post("/manage/models", status_code=202, openapi_extra=MODEL_FILE)
    async def push(request: Request, why: Annotated[Text, Query(max_length=1000)] = "") -> Accepted:
        """Push a pipeline as a skops file (the raw body). It passes the same gates as a retrained one."""
        settings.pushes_dir.mkdir(parents=True, exist_ok=True)
        path = settings.pushes_dir / f"{secrets.token_hex(8)}.skops"
        try:
            with path.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                async for chunk in request.stream():
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
                if not file.tell():
                    raise HTTPException(400, "the body is empty: send one skops file")
                payload = {"path": str(path), "bytes": file.tell(), "temporary": True}
                return await asyncio.to_thread(queue, "push", why, request, payload)
        except BaseException:  # also when the client leaves
            path.unlink(missing_ok=True)
            raise

    @app.post("/manage/models/{version}/promote", status_code=202)
    def promote(version: VersionId, request: Request, body: Why | None = None) -> Accepted:
        """Put a registered version in service, past the gates, on your word."""
        registry.get(version)
        return queue("promote", body.why if body else "", request, {"version": version})

    @app.post("/manage/rollback", status_code=202)
    def rollback(request: Request, body: Why | None = None) -> Accepted:
        """Put the previous champion in service again."""
        if registry.live().previous is None:
            raise HTTPException(
                409, "there is no previous champion to go back to; `evergreen promote VERSION` names one"
            )
        return queue("rollback", body.why if body else "", request)

    @app.post("/manage/retrain", status_code=202)
    def retrain(request: Request, body: Why | None = None) -> Accepted:
        """Train a candidate now; it is promoted if it passes the gates."""
        return queue("retrain", body.why if body else "", request)

    @app.post("/manage/erasures", status_code=202)
    def erasures(request: Request, body: Erasure) -> Accepted:
        """Forget rows everywhere: record, spool, snapshots, references, reports, exports; the run says what went."""
        whom: dict[str, Any] = {"ids": body.ids} if body.ids else {"feature": body.feature, "value": body.value}
        if worker.privacy is not None and body.feature in worker.privacy.hash:
            whom["hidden"] = worker.privacy.hidden(body.value)  # rows of before the setting have the value itself
        return queue("erase", body.why, request, whom)

    @app.get("/manage/runs")
    def list_runs(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        before: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        kind: Annotated[Text | None, Query(max_length=100)] = None,
    ) -> dict[str, Any]:
        """Decisions, newest first; `before` pages on."""
        return {"runs": [_run(run) for run in runs.list(limit=limit, before=before, kind=kind)]}

    @app.get("/manage/runs/{run_id}")
    def run(run_id: RowId) -> dict[str, Any]:
        """One decision with its full story."""
        return _run(runs.get(run_id))

    @app.get("/manage/drift")
    def drift(limit: Annotated[int, Query(ge=1, le=1000)] = 1) -> dict[str, Any]:
        """The newest checks: drift by feature, quality, and what was decided."""
        found = runs.checks(limit=limit)
        return {
            "checks": [
                {
                    "id": c.id,
                    "at": c.at,
                    "version": c.version,
                    "drift": c.drift,
                    "quality": c.quality,
                    "decision": c.decision,
                }
                for c in found
            ]
        }

    @app.get("/manage/reports/{check_id}")
    def report(check_id: RowId) -> FileResponse:
        """Evidently's HTML report of a check."""
        path = settings.var / "reports" / f"{check_id}.html"
        if not path.exists():
            raise HTTPException(
                404, f"check {check_id} has no report: one is kept for the first check that saw a version's data drift"
            )
        return FileResponse(path, media_type="text/html")

    @app.get("/manage/labels/{prediction_id}")
    def label(prediction_id: Annotated[Text, InPath(min_length=1, max_length=512)]) -> dict[str, Any]:
        """What is known of a prediction id: predicted when and by which version, labelled how."""
        found: dict[str, Any] = msgspec.to_builtins(label_status(engine, prediction_id))
        return found

    @app.get("/manage/status")
    def status() -> dict[str, Any]:
        """The deployment at a glance."""
        live = registry.live()
        checks = runs.checks(limit=1)
        local = {report.slot: report for report in read_reports(worker.run_dir / "workers")}
        controller = read_status(worker.run_dir)
        current = worker.model.current
        return {
            "model": settings.model.name,
            "champion": live.champion,
            "previous": live.previous,
            "announced": live.announced,
            "engine": current.engine if current else None,
            "ready": worker.why_not_ready is None,
            "workers": [
                {"replica": w.replica, "slot": w.slot, "serving": w.serving, "ready": list(w.ready), "failed": w.failed}
                for w in live_workers(engine, 10.0)
            ]
            or [
                {"replica": "this", "slot": r.slot, "serving": r.serving, "ready": list(r.ready), "failed": r.failed}
                for r in local.values()
            ],
            "leader": controller.leader if controller else None,
            "spool_bytes": controller.spool_bytes if controller else None,
            "drain_lag_s": controller.drain_lag_s if controller else None,
            "last_check": None
            if not checks
            else {
                "at": checks[0].at,
                "version": checks[0].version,
                "drift": checks[0].drift,
                "quality": checks[0].quality,
                "decision": checks[0].decision,
            },
            "runs": [_run(run, whole=False) for run in runs.list(limit=5)],
        }

    app.openapi = lambda: _described(app)  # type: ignore[method-assign]

    @app.exception_handler(AnyHTTPException)
    def http_error(_: Request, error: AnyHTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    def unexpected(request: Request, _: Exception) -> JSONResponse:
        found = request.state.request_id
        return _error(500, f"an error of ours; the server's log has the details under request {found}")

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return _error(400, f"{where}: {first['msg']}")

    @app.exception_handler(UnknownVersion)
    @app.exception_handler(UnknownRun)
    def unknown(_: Request, error: Exception) -> JSONResponse:
        return _error(404, str(error))

    @app.exception_handler(FormatError)
    def too_new(_: Request, error: FormatError) -> JSONResponse:
        return _error(503, str(error))

    @app.exception_handler(SQLAlchemyError)
    def store_down(_: Request, error: SQLAlchemyError) -> JSONResponse:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        return _error(503, f"the store does not answer ({reason}); predictions go on, try again", {"retry-after": "5"})

    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, without its 422 (malformed is a 400 here), and with the token."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for methods in found["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                operation["security"] = [{"bearer": []}]
                operation["responses"]["401"]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = found
    return app.openapi_schema


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def _version(info: Version, *, whole: bool = False) -> dict[str, Any]:
    manifest = info.manifest
    shown: dict[str, Any] = {
        "version": info.version,
        "created_at": info.created_at,
        "origin": info.origin,
        "estimator": manifest.estimator,
        "quality": msgspec.to_builtins(manifest.quality),
        "engine": "scikit-learn" if manifest.twin is None else "onnx",
        "reproducible": manifest.reproducible,
    }
    if whole:
        shown["manifest"] = manifest.document
    return shown


def _run(run: Run, *, whole: bool = True) -> dict[str, Any]:
    shown = {name: getattr(run, name) for name in Run.__dataclass_fields__}
    document = shown.pop("document")
    if whole:
        shown["record"] = document
    return shown
