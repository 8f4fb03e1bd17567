"""`/manage/models`, and which of the versions is in service."""

from __future__ import annotations

import asyncio
import fcntl
import re
import secrets
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from threading import BoundedSemaphore
from typing import IO, Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query, Request

from monitoring.fits import moment
from service.serving.management.deployment import TRY_AGAIN_S
from service.serving.management.loop import refuse_while_paused
from service.serving.management.managed import CONFLICT, Accepted, Here, Managed, NumberInPath, Text, Why
from service.versions import all_versions, one_version
from training.admission import Pushed, problem_of
from training.artefact import SCHEMA
from training.storage import Storage, StorageError, shared_push

router = APIRouter()

_CHECKS: Final = BoundedSemaphore(2)
"""Pushed files that are checked at the same time by one worker."""

MODEL_FILE: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    }
}


@router.get("/manage/models")
def models(here: Here) -> dict[str, Any]:
    """All versions, newest first, and which of them runs under which alias."""
    return all_versions(here.engine, here.registry)


@router.get("/manage/models/{version}")
def model(here: Here, version: NumberInPath) -> dict[str, Any]:
    """One version with its manifest (data, parameters, seed, libraries, gates), its lineage, and notes on it."""
    return one_version(here.engine, here.registry, version)


@router.post("/manage/models", status_code=202, responses=CONFLICT, openapi_extra=MODEL_FILE)
async def push(
    here: Here,
    request: Request,
    why: Annotated[Text, Query(max_length=1000)] = "",
    trained_until: Annotated[str, Query(max_length=40)] = "",
) -> Accepted:
    """Push a pipeline as a skops file, or an ONNX file (the raw body). It passes the same gates as a retrained one.

    What cannot become a version is refused at once, with the reason: a file that is neither, of types that are not
    trusted, of another scikit-learn, or of other features or classes. With a `Content-Digest: sha-256=:…:` (RFC 9530)
    what arrived is compared with it. `trained_until` (ISO 8601) is the time of the newest row that the model was fitted
    to: only later rows judge it. Refused while the loop is paused, and asked for again while others are checked.
    """
    until = _until(trained_until)
    await asyncio.to_thread(refuse_while_paused, here)
    digest = sha256()
    here.settings.pushes_dir.mkdir(parents=True, exist_ok=True)
    path = here.settings.pushes_dir / f"{secrets.token_hex(8)}.skops"
    try:
        with path.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            async for chunk in request.stream():
                await asyncio.to_thread(_take, file, digest, chunk)
            file.flush()
            if not file.tell():
                raise HTTPException(400, "the body is empty: send one skops or ONNX file")
            _check_digest(request.headers.get("content-digest", ""), digest.digest())
            await asyncio.to_thread(_check, here, path)
            await asyncio.to_thread(_share, here, path)
            payload = {"path": str(path), "bytes": file.tell(), "temporary": True, "trained_until": until}
            return await asyncio.to_thread(here.queue, "push", why, request, payload)
    except BaseException:  # also when the client leaves
        path.unlink(missing_ok=True)
        raise


def _until(text: str) -> float | None:
    """Seconds since 1970 UTC, None when nothing was said. Raises the 400 for what is no time, or one to come."""
    if not text:
        return None
    try:
        until = moment(text)
    except ValueError as error:
        raise HTTPException(400, f"trained_until: {error}") from None
    if until > time.time():
        raise HTTPException(400, f"trained_until: {text} is yet to come: give the time of the newest row it learnt")
    return until


def _take(file: IO[bytes], digest: Any, chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)


def _share(here: Managed, path: Path) -> None:
    """Put the file where whichever replica leads will look for it. Raises the 503 while that cannot be reached."""
    url = here.settings.store.artefacts
    if not url:
        return
    try:
        Storage(url).put(path, shared_push(str(path)))
    except StorageError as error:
        raise HTTPException(503, f"{error}; push it again", {"retry-after": str(TRY_AGAIN_S)}) from None
    path.unlink()  # the leader fetches it, whoever that is


def _check_digest(given: str, found: bytes) -> None:
    said = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", given)
    if said and said[1] != (came := b64encode(found).decode()):
        raise HTTPException(400, f"the body has the SHA-256 {came}, its Content-Digest says {said[1]}: send it again")


def _check(here: Managed, path: Path) -> None:
    """Have a process of its own look at the file. Raises the 400 with what is wrong, or the 503 when too many wait."""
    if not _CHECKS.acquire(blocking=False):
        raise HTTPException(503, "other pushed files are being checked: try again", {"retry-after": str(TRY_AGAIN_S)})
    try:
        champion = here.registry.live().champion
        problem = problem_of(
            Pushed(
                path=str(path),
                schema=None if champion is None else str(here.registry.path(champion) / SCHEMA),
                trusted=here.settings.security.trusted,
                memory_mb=here.settings.training.memory_mb,
            )
        )
    finally:
        _CHECKS.release()
    if problem:
        raise HTTPException(400, problem)


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
