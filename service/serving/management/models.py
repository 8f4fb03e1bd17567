"""`/manage/models`, and which of the versions is in service."""

from __future__ import annotations

import asyncio
import fcntl
import secrets
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request

from service.serving.management.loop import refuse_while_paused
from service.serving.management.managed import CONFLICT, Accepted, Here, NumberInPath, Text, Why
from training.registry import Version

router = APIRouter()

MODEL_FILE: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    }
}


@router.get("/manage/models")
def models(here: Here) -> dict[str, Any]:
    """All versions, newest first, and which of them runs under which alias."""
    live = here.registry.live()
    return {
        "model": here.settings.model.name,
        "champion": live.champion,
        "previous": live.previous,
        "announced": live.announced,
        "models": [_version(info) for info in here.registry.list()],
    }


@router.get("/manage/models/{version}")
def model(here: Here, version: NumberInPath) -> dict[str, Any]:
    """One version with its manifest: data, parameters, seed, libraries, gates."""
    return _version(here.registry.get(version), whole=True)


@router.post("/manage/models", status_code=202, responses=CONFLICT, openapi_extra=MODEL_FILE)
async def push(here: Here, request: Request, why: Annotated[Text, Query(max_length=1000)] = "") -> Accepted:
    """Push a pipeline as a skops file (the raw body). It passes the same gates as a retrained one.

    Refused while the loop is paused.
    """
    await asyncio.to_thread(refuse_while_paused, here)
    here.settings.pushes_dir.mkdir(parents=True, exist_ok=True)
    path = here.settings.pushes_dir / f"{secrets.token_hex(8)}.skops"
    try:
        with path.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
            file.flush()
            if not file.tell():
                raise HTTPException(400, "the body is empty: send one skops file")
            payload = {"path": str(path), "bytes": file.tell(), "temporary": True}
            return await asyncio.to_thread(here.queue, "push", why, request, payload)
    except BaseException:  # also when the client leaves
        path.unlink(missing_ok=True)
        raise


@router.post("/manage/models/{version}/promote", status_code=202)
def promote(here: Here, version: NumberInPath, request: Request, body: Why | None = None) -> Accepted:
    """Put a registered version in service, past the gates, on your word."""
    here.registry.get(version)
    return here.queue("promote", body.why if body else "", request, {"version": version})


@router.post("/manage/rollback", status_code=202, responses=CONFLICT)
def rollback(here: Here, request: Request, body: Why | None = None) -> Accepted:
    """Put the previous champion in service again."""
    if here.registry.live().previous is None:
        raise HTTPException(409, "there is no previous champion to go back to; `evergreen promote VERSION` names one")
    return here.queue("rollback", body.why if body else "", request)


@router.post("/manage/retrain", status_code=202, responses=CONFLICT)
def retrain(here: Here, request: Request, body: Why | None = None) -> Accepted:
    """Train a candidate now; it is promoted if it passes the gates. Refused while the loop is paused."""
    refuse_while_paused(here)
    return here.queue("retrain", body.why if body else "", request)


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
