"""`/manage/adaptation`: how the champion's output is adapted between trainings, and the switch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request

from service.serving.management.managed import CONFLICT, Accepted, Here, Managed, Why
from training.adaptations import Adaptations, Event

router = APIRouter()


class Switch(Why):
    """Whether outputs are adapted between trainings: `off` serves the champion's own until `on`."""

    state: Literal["on", "off"]


@router.get("/manage/adaptation")
def adaptation(here: Here, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> dict[str, Any]:
    """The adaptation of the champion's output that is in force, and what happened to its adaptations, newest first."""
    adaptations, champion = Adaptations(here.engine), here.registry.live().champion
    switch = adaptations.switch()
    return {
        "version": champion,
        "enabled": switch is None or switch.kind == "on",
        "in_force": in_force(here, champion),
        "adaptations": [] if champion is None else [_event(event) for event in adaptations.list(champion, limit)],
    }


@router.post("/manage/adaptation", status_code=202, responses=CONFLICT)
def switch_adaptation(here: Here, request: Request, body: Switch) -> Accepted:
    """Switch adaptations off, so that the champion's own output is served, or on again."""
    if here.registry.live().champion is None:
        raise HTTPException(409, "there is no champion yet whose output could be adapted; see `evergreen status`")
    return here.queue("adaptation", body.why, request, {"state": body.state})


def in_force(here: Managed, champion: int | None) -> int | None:
    """The number of the champion's adaptation in force, None when it answers with its own output."""
    found = None if champion is None else Adaptations(here.engine).in_force(champion)
    return None if found is None else found.number


def _event(event: Event) -> dict[str, Any]:
    return {**event._asdict(), "weights": event.record.get("weights")}
