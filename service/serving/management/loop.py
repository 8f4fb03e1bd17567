"""`/manage/pause` and `/manage/resume`: whether the loop checks, trains and promotes by itself."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request

from service.serving.management.managed import CONFLICT, Accepted, Here, Managed, Why

router = APIRouter()


@router.post("/manage/pause", status_code=202, responses=CONFLICT)
def pause(here: Here, request: Request, body: Why | None = None) -> Accepted:
    """Pause checks, trainings and promotions until `resume`; predictions and their record go on.

    A training under way is ended. What people ask for by hand (promote, rollback, adaptation, erase) is still done;
    trainings and pushes are refused.
    """
    refuse_while_paused(here)
    return here.queue("pause", body.why if body else "", request)


@router.post("/manage/resume", status_code=202, responses=CONFLICT)
def resume(here: Here, request: Request, body: Why | None = None) -> Accepted:
    """Let the loop work again."""
    if here.runs.paused() is None:
        raise HTTPException(409, "the loop is not paused: nothing is to be resumed")
    return here.queue("resume", body.why if body else "", request)


def refuse_while_paused(here: Managed) -> None:
    """Raises 409 while the loop is paused."""
    paused = here.runs.paused()
    if paused is not None:
        why = f" ({paused.why})" if paused.why else ""
        raise HTTPException(409, f"{paused.who} paused the loop in run {paused.id}{why}: resume it first")
