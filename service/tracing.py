"""What sends a process's spans, when a collector is configured."""

from __future__ import annotations

from monitoring.metrics import Metrics
from monitoring.traces import Tracer
from service.settings import Settings


def open_tracer(settings: Settings, process: str, metrics: Metrics) -> Tracer | None:
    """What sends this process's spans and counts them; None when there is nowhere to send them."""
    if not settings.trace.url:
        return None

    def count(outcome: str, how_many: int) -> None:
        metrics.traces.labels(outcome).inc(how_many)

    return Tracer(settings.trace, process, settings.model.name, count)
