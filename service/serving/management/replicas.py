"""`/manage/replicas`: every home of the deployment, what runs there, who leads; and saying that one is gone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as InPath

from service.serving.management.managed import Accepted, Here, Managed, Text, Why
from training.homes import expected, find_home

router = APIRouter()


def shown(here: Managed) -> list[dict[str, Any]]:
    """Every home that is not gone for good; the one of this replica says so."""
    mine = here.home
    return [{**asdict(home), "away": home.away, "here": home.home == mine} for home in expected(here.engine)]


@router.get("/manage/replicas")
def replicas(here: Here) -> dict[str, Any]:
    """The homes of this deployment: version served, what waits in the spool, whether ready, last seen, who leads."""
    return {"replicas": shown(here)}


@router.post("/manage/replicas/{home}/gone", status_code=202)
def gone(
    here: Here,
    request: Request,
    home: Annotated[Text, InPath(min_length=1, max_length=512)],
    body: Why | None = None,
) -> Accepted:
    """Say that a home does not come back: erasures stop waiting for it, and its own token is revoked.

    By its id, or by the name of its host where that has one home. Should it come back after all, it is refused.
    """
    found = find_home(here.engine, home)
    return here.queue("gone", body.why if body else "", request, {"home": found.home})
