"""`/manage/reports`: Evidently's page of any check, made when somebody asks for it, and not in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from html import escape
from os import fstat
from typing import Any, BinaryIO, Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from service.report_files import MOST_ASKED, ReportFiles
from service.serving.management.managed import Here, NumberInPath

router = APIRouter()

RETRY_S: Final = 2
_PIECE_BYTES: Final = 2**16
PRIVATE: Final = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}

DRAWN_POLICY: Final = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
"""Evidently's page is one file with its scripts in it. It gets an origin of its own: no cookie, no other host."""

WAIT_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Evidently's page", "content": {"text/html": {"schema": {"type": "string"}}}},
    202: {
        "description": "It is being made: ask again after `Retry-After`; a browser does so by itself",
        "headers": {
            "Retry-After": {"description": "Seconds", "schema": {"type": "integer"}},
            "Location": {"description": "Where it will be", "schema": {"type": "string"}},
        },
        "content": {"text/html": {"schema": {"type": "string"}}},
    },
    410: {"description": "What the check looked at has been deleted since; the message says when and by what"},
}


class BeingMade(BaseModel):
    """The report of this check is being made."""

    check: int
    waiting: int


@router.get(
    "/manage/reports/{check_id}",
    response_class=Response,
    responses={**ANSWERS, 202: {**ANSWERS[202], "model": BeingMade}},
)
def report(here: Here, request: Request, check_id: NumberInPath) -> Response:
    """Evidently's HTML report of a check: made by a job of low priority on this replica, then kept here for a while."""
    files = ReportFiles(here.settings.reports_dir)
    with suppress(FileNotFoundError):
        page = files.page(check_id).open("rb")  # once open, it may be deleted meanwhile
        headers = {
            **PRIVATE,
            "content-security-policy": DRAWN_POLICY,
            "content-length": str(fstat(page.fileno()).st_size),
        }
        return StreamingResponse(_pieces(page), media_type="text/html", headers=headers)
    refused = files.refused(check_id)
    if refused is not None:
        raise HTTPException(refused.status, refused.error)
    if here.runs.checked(check_id) is None:
        days = here.settings.retention.checks_days
        raise HTTPException(
            404, f"there is no check {check_id}; `evergreen drift` shows them, they are kept {days} days"
        )
    if not files.ask(check_id):
        words = f"{MOST_ASKED} reports wait to be made on this replica; try again"
        raise HTTPException(503, words, {"retry-after": "10"})
    headers = {**PRIVATE, "retry-after": str(RETRY_S), "location": str(check_id)}
    waiting = len(files.asked())
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"check": check_id, "waiting": waiting}, 202, headers)
    words = f"The report of check {check_id} is being made. This page looks again every {RETRY_S} seconds."
    head = f'<meta charset="utf-8"><meta http-equiv="refresh" content="{RETRY_S}"><title>Check {check_id}</title>'
    looking = f'<!doctype html><html lang="en"><head>{head}</head><body><p>{escape(words)}</p></body></html>'
    return HTMLResponse(looking, 202, {**headers, "content-security-policy": WAIT_POLICY})


def _pieces(page: BinaryIO) -> Iterator[bytes]:
    """A page in small pieces, so that no other request waits for it."""
    with page:
        while piece := page.read(_PIECE_BYTES):
            yield piece
