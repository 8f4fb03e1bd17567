"""Says what a person should know of in the log, and sends it to the webhook, when there is one."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from monitoring.alerts import Event, EventState, send
from service.settings import Settings

logger = logging.getLogger("evergreen.alert")

NUMBERS: Final = ("run", "version", "rows", "features", "moved", "worker", "kind", "outcome")
"""What the log has of an alert; its reasons may quote values out of rows."""


class Alarm:
    """`alarm(event, facts)` posts them from a thread of its own: a slow receiver delays nothing."""

    def __init__(self, settings: Settings) -> None:
        self._policy = settings.alerts
        self._model = settings.model.name

    def __call__(self, event: str, facts: Mapping[str, Any], state: EventState = "happened") -> None:
        """Send an event and return at once; `facts` are JSON values.

        A trouble that lasts is told twice: as it `began`, and as it `ended`, with the same fact `trouble`.
        """
        if event != "run":  # a run's end has a line of its own
            told = {name: facts[name] for name in NUMBERS if name in facts}
            how = "alert has ended" if state == "ended" else "alert"
            extra = {"event": "alert", "alert": event, "state": state} | told
            level = logging.INFO if state == "ended" else logging.WARNING
            logger.log(level, "%s: %s", how, event.replace("_", " "), extra=extra)
        policy = self._policy
        if not policy.webhook_url:
            return
        made = Event(str(uuid.uuid4()), event, state, self._model, time.time(), facts)
        threading.Thread(
            target=send,
            args=(policy.webhook_url, made, policy.timeout_s),
            kwargs={"secret": policy.webhook_secret.get_secret_value()},
            name="evergreen-alert",
            daemon=True,
        ).start()
