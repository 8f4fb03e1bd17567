"""What every route of `/manage` works with, and the shapes they share."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi import Path as InPath
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.serving.management.deployment import Accepted, Managed

__all__ = ["Accepted", "Here", "Managed", "NumberInPath", "Text", "Why"]

LARGEST_ID: Final = 2**31 - 1
"""The largest number of a version, run or check: a column of 32 bits."""


CONFLICT: Final[dict[int | str, dict[str, Any]]] = {409: {"description": "Not possible as things stand"}}
"""What a route says of itself that may answer so."""


def _storable(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("has a zero character or half of a surrogate pair, which no database can store")
    return text


Text = Annotated[str, AfterValidator(_storable)]
NumberInPath = Annotated[int, InPath(ge=1, le=LARGEST_ID)]
"""Of a version, a run or a check."""


class Why(BaseModel):
    """The reason given for a write; it stands in the run."""

    model_config = ConfigDict(extra="forbid")
    why: Text = Field("", max_length=1000)


async def _managed(request: Request) -> Managed:
    found: Managed = request.app.state.managed
    return found


Here = Annotated[Managed, Depends(_managed)]
"""How a route asks for the deployment it belongs to."""
