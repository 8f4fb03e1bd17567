"""A training as a trace: the run, and below it the job, the job's steps, and bringing the version into service."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from monitoring.traces import Part, Told, Tracer
from training.runs import Run


class RunSpans:
    """Listens to the events of `training/cycle.py` and tells the tracer of each run that had a job."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._parts: dict[int, list[Part]] = {}

    def hear(self, name: str, fields: Mapping[str, Any]) -> None:
        """Take an event in."""
        if name == "training_started":
            now = time.time()
            self._parts = {fields["run"].id: [Part("job", now, now)]}  # one runs at a time; what broke off is forgotten
        elif name == "training_ended" and (parts := self._parts.get(fields["run"].id)):
            parts[0] = parts[0]._replace(end=time.time())
            parts += [Part(phase.name, phase.begin, phase.end) for phase in fields["result"].phases]
        elif name == "run_finished" and (known := self._parts.pop(fields["run"].id, None)):
            self._take(fields["run"], known)

    def _take(self, run: Run, parts: list[Part]) -> None:
        ended = time.time()
        begin = run.started_at or parts[0].begin
        parts = [Part("collect the data", begin, parts[0].begin), *parts]
        if run.outcome == "promoted":
            parts.append(Part("roll out", parts[1].end, ended))
        facts: dict[str, Any] = {"evergreen.run": run.id, "evergreen.trigger": run.trigger}
        facts["evergreen.outcome"] = run.outcome or run.state
        if run.version is not None:
            facts["evergreen.version"] = run.version
        told = Told(run.kind, self._tracer.new_id(), "", begin, ended, parts, facts, failed=run.state == "failed")
        self._tracer.take(told)
