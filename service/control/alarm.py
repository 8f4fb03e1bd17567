"""Says what a person should know of in the log, and sends it to the webhook, when there is one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from monitoring.alerts import send
from service.settings import Settings

logger = logging.getLogger("evergreen.alert")

NUMBERS: Final = ("run", "version", "rows", "features", "moved", "worker", "kind", "outcome")
"""What the log has of an alert; its reasons may quote values out of rows."""


class Alarm:
    """`alarm(event, facts)` posts them from a thread of its own: a slow receiver delays nothing."""

    def __init__(self, settings: Settings) -> None:
        self._policy = settings.alerts
        self._model = settings.model.name

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Send an event and return at once; `facts` are JSON values."""
        if event != "run":  # a run's end has a line of its own
            told = {name: facts[name] for name in NUMBERS if name in facts}
            logger.warning("alert: %s", event.replace("_", " "), extra={"event": "alert", "alert": event} | told)
        url = self._policy.webhook_url
        if not url:
            return
        body = {"event": event, "model": self._model, "at": time.time(), **facts}
        threading.Thread(
            target=send, args=(url, body, self._policy.timeout_s), name="evergreen-alert", daemon=True
        ).start()
