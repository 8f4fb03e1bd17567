"""`/manage`: what people do to the service. `gate.py` has asked for the token before; each write is a row in `runs`.

Slow work is never done inside the request: it is queued as a run, and the controller that holds the lease does it.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as AnyHTTPException

from service.serving.management import adaptation, loop, models, replicas, reports, rows, runs, versions
from service.serving.management.deployment import TRY_AGAIN_S, managed, store_down
from service.serving.management.openapi import PATH, document
from training.homes import UnknownHome
from training.manifest import FormatError
from training.registry import UnknownVersion
from training.runs import UnknownRun

if TYPE_CHECKING:
    from service.serving.worker import Worker


@lru_cache(maxsize=1)
def application(worker: Worker) -> FastAPI:
    """The management API of this worker's deployment as an ASGI application."""
    settings = worker.settings
    app = FastAPI(
        title=f"Evergreen management: {settings.model.name}",
        exception_handlers={
            AnyHTTPException: _http_error,
            RequestValidationError: _malformed,
            UnknownVersion: _not_found,
            UnknownRun: _not_found,
            UnknownHome: _not_found,
            FormatError: _too_new,
            SQLAlchemyError: _store_down,
            Exception: _unexpected,
        },
        root_path="",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=PATH,
    )
    app.state.managed = managed(settings, worker.run_dir)
    for each in (models, versions, adaptation, loop, replicas, reports, rows, runs):
        app.include_router(each.router)
    app.openapi = cache(lambda: document(app))  # type: ignore[method-assign]
    return app


async def _http_error(_: Request, error: AnyHTTPException) -> JSONResponse:
    return _error(error.status_code, str(error.detail), dict(error.headers or {}))


async def _malformed(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return _error(400, f"{where}: {first['msg']}")


async def _not_found(_: Request, error: Exception) -> JSONResponse:
    return _error(404, str(error))


async def _too_new(_: Request, error: Exception) -> JSONResponse:
    return _error(503, str(error))


async def _store_down(_: Request, error: SQLAlchemyError) -> JSONResponse:
    return _error(503, store_down(error), {"retry-after": str(TRY_AGAIN_S)})


async def _unexpected(request: Request, _: Exception) -> JSONResponse:
    found = request.state.request_id
    return _error(500, f"an error of ours; the server's log has the details under request {found}")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)
