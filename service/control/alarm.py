"""Sends events that a person should know of to the webhook, when there is one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from monitoring.alerts import send
from service.settings import Settings


class Alarm:
    """`alarm(event, facts)` posts them from a thread of its own: a slow receiver delays nothing."""

    def __init__(self, settings: Settings) -> None:
        self._policy = settings.alerts
        self._model = settings.model.name

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Send an event and return at once; `facts` are JSON values."""
        url = self._policy.webhook_url
        if not url:
            return
        body = {"event": event, "model": self._model, "at": time.time(), **facts}
        threading.Thread(
            target=send, args=(url, body, self._policy.timeout_s), name="evergreen-alert", daemon=True
        ).start()
