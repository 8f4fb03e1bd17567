"""What is known of single rows, and how they are forgotten."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydantic import Field, model_validator

from monitoring.store import store_now
from monitoring.window import label_status
from service.keys import open_privacy
from service.serving.management.managed import Accepted, Here, Text, Why

router = APIRouter()


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


@router.post("/manage/erasures", status_code=202)
def erasures(here: Here, request: Request, body: Erasure) -> Accepted:
    """Forget rows everywhere: record, spool, snapshots, references, reports, exports; the run says what went."""
    whom: dict[str, Any] = {"ids": body.ids} if body.ids else {"feature": body.feature, "value": body.value}
    privacy = open_privacy(here.settings)
    if privacy is not None and body.feature in privacy.hash:
        whom["hidden"] = privacy.hidden(body.value)  # rows of before the setting have the value itself
    return here.queue("erase", body.why, request, whom | {"asked_at": store_now(here.engine)})


@router.get("/manage/labels/{prediction_id}")
def label(here: Here, prediction_id: Annotated[Text, InPath(min_length=1, max_length=512)]) -> dict[str, Any]:
    """What is known of a prediction id: predicted when and by which version, labelled how."""
    found: dict[str, Any] = msgspec.to_builtins(label_status(here.engine, prediction_id))
    return found
