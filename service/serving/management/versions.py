"""`/manage/models/{version}/…`: one version beside another, and what people say of one."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from service.serving.management.managed import Accepted, Here, NumberInPath, Text, Why
from training.comparison import compare
from training.marks import LONGEST_NOTE, TAG, BadMark, note, tag

router = APIRouter()

Tag = Annotated[str, Field(pattern=f"^{TAG}$")]


class Tags(Why):
    """Tags to put on the version, and others to take off."""

    add: list[Tag] = Field([], max_length=20)
    remove: list[Tag] = Field([], max_length=20)


class Note(BaseModel):
    """What is to be kept of the version."""

    model_config = ConfigDict(extra="forbid")
    text: Text = Field(min_length=1, max_length=LONGEST_NOTE)


@router.get("/manage/models/{version}/compare/{other}")
def compare_versions(here: Here, version: NumberInPath, other: NumberInPath) -> dict[str, Any]:
    """Two versions side by side: data, parameters, gates, slices, importance, libraries.

    Their predictions on the same rows need both artefacts: `evergreen models compare` makes them where these are.
    """
    found: dict[str, Any] = msgspec.to_builtins(compare(here.engine, here.registry, version, other))
    return found


@router.post("/manage/models/{version}/tags", status_code=201)
def tag_version(here: Here, version: NumberInPath, request: Request, body: Tags) -> Accepted:
    """Put tags on a version, or take them off; the run that says who did it is over at once."""
    who, now = request.state.who, time.time()
    try:
        return Accepted(
            run=tag(here.registry, version, body.add, body.remove, engine=here.engine, who=who, why=body.why, now=now)
        )
    except BadMark as error:
        raise HTTPException(400, str(error)) from None


@router.post("/manage/models/{version}/notes", status_code=201)
def note_version(here: Here, version: NumberInPath, request: Request, body: Note) -> Accepted:
    """Keep a note on a version, with who said it and when; the run that holds it is over at once."""
    who, now = request.state.who, time.time()
    try:
        return Accepted(run=note(here.registry, version, body.text, engine=here.engine, who=who, now=now))
    except BadMark as error:  # of spaces alone
        raise HTTPException(400, str(error)) from None
