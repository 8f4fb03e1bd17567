"""The deployment that `/manage` and the page work with; without the framework, which the page does not need."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from monitoring.errors import first_line
from monitoring.store import connect
from training.registry import Registry
from training.runs import Runs

if TYPE_CHECKING:
    import sqlalchemy as sa
    from starlette.requests import Request

    from service.serving.worker import Worker
    from service.settings import Settings


TRY_AGAIN_S: Final = 5


class Accepted(BaseModel):
    """The run that will do it: poll `GET /manage/runs/{run}`."""

    run: int


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Managed:
    """The deployment that is managed: the worker that answers, its store, and what stands there."""

    worker: Worker
    engine: sa.Engine
    runs: Runs
    registry: Registry

    @property
    def settings(self) -> Settings:
        return self.worker.settings

    def queue(self, kind: str, why: str, request: Request, payload: dict[str, Any] | None = None) -> Accepted:
        """Queue a run of this kind in the name of whoever asks; the controller that holds the lease does it."""
        who = request.state.who
        return Accepted(run=self.runs.queue(kind, trigger="manual", who=who, why=why, now=time.time(), payload=payload))


@lru_cache(maxsize=1)
def managed(worker: Worker) -> Managed:
    """The deployment of this worker; its connections are closed with it."""
    settings = worker.settings
    engine = connect(settings.store_url)
    found = Managed(worker, engine, Runs(engine), Registry(engine, settings.models_dir, settings.model.name))
    weakref.finalize(found, engine.dispose)
    return found


def store_down(error: Exception) -> str:
    """What is told when the store has something against what was asked; it may be asked again `TRY_AGAIN_S` later."""
    return f"the store does not answer ({first_line(error)}); predictions go on, try again"
