"""The deployment that `/manage` and the page work with; without the framework, which the page does not need.

It is known from the settings, the files of one server and the store: a worker has it, and so has the controller.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from monitoring.errors import first_line
from monitoring.store import connect
from service.handover import read_reports
from service.secret_file import home_id
from training.registry import Registry
from training.runs import Runs

if TYPE_CHECKING:
    from pathlib import Path

    import sqlalchemy as sa
    from starlette.requests import Request

    from service.handover import WorkerReport
    from service.settings import Settings


TRY_AGAIN_S: Final = 5


class Accepted(BaseModel):
    """The run that will do it: poll `GET /manage/runs/{run}`."""

    run: int


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Managed:
    """The deployment that is managed: the server that answers, its store, and what stands there."""

    settings: Settings
    run_dir: Path
    home: str
    engine: sa.Engine
    runs: Runs
    registry: Registry

    @property
    def metrics_dir(self) -> Path:
        """Of all processes of this server."""
        return self.run_dir / "metrics"

    @property
    def workers(self) -> list[WorkerReport]:
        """What the workers of this server say of themselves."""
        return read_reports(self.run_dir / "workers")

    @property
    def why_not_ready(self) -> str:
        """Why a worker of this server cannot answer predictions; "" when each can."""
        found = self.workers
        return "no worker of this server has said anything yet" if not found else max(w.why_not_ready for w in found)

    def model_engine(self, version: int | None) -> str | None:
        """What a worker of this server answers this version with, None when none serves it."""
        return next((w.engine for w in self.workers if w.serving is not None and w.serving == version), None)

    def queue(self, kind: str, why: str, request: Request, payload: dict[str, Any] | None = None) -> Accepted:
        """Queue a run of this kind in the name of whoever asks; the controller that holds the lease does it."""
        who = request.state.who
        return Accepted(run=self.runs.queue(kind, trigger="manual", who=who, why=why, now=time.time(), payload=payload))


def managed(settings: Settings, run_dir: Path) -> Managed:
    """The deployment of a server, with connections of its own to the store; they are closed with it."""
    engine = connect(settings.store_url)
    registry = Registry(engine, settings.models_dir, settings.model.name)
    found = Managed(settings, run_dir, home_id(settings), engine, Runs(engine), registry)
    weakref.finalize(found, engine.dispose)
    return found


def store_down(error: Exception) -> str:
    """What is told when the store has something against what was asked; it may be asked again `TRY_AGAIN_S` later."""
    return f"the store does not answer ({first_line(error)}); predictions go on, try again"
