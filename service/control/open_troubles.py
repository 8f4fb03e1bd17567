"""Troubles that last: each is told as it begins and as it has ended, also over restarts of the controller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from monitoring.alerts import EventState
from monitoring.files import write_atomically

logger = logging.getLogger("evergreen.troubles")


class Tell(Protocol):
    def __call__(self, event: str, facts: Mapping[str, Any], state: EventState) -> None: ...


class Open(msgspec.Struct, frozen=True):
    """A trouble that was told as begun, and not as ended."""

    event: str
    facts: dict[str, Any]
    """JSON values; `trouble` is its name."""


_decode: Final = msgspec.json.Decoder(list[Open]).decode


class OpenTroubles:
    """What is open now, kept in a file. A disk that takes no file costs only the memory of it after a restart.

    Args:
        path: of the file (0600); nobody else writes it.
        tell: told (event, facts, state): `began`, then `ended` with the same fact `trouble`.
    """

    def __init__(self, path: Path, tell: Tell) -> None:
        self._path, self._tell = path, tell
        self._lock = threading.Lock()
        self._open: dict[str, Open] = {}
        try:
            self._open = {known.facts["trouble"]: known for known in _decode(path.read_bytes())}
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, KeyError) as error:
            logger.warning("%s cannot be read (%s): troubles that last are told anew", path, error)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The facts of what is open of this kind, as they were told when it began."""
        return [known.facts for known in list(self._open.values()) if known.event == event]

    def began(self, event: str, facts: Mapping[str, Any], *, error: str = "") -> None:
        """Tell of the trouble that `facts` name, unless it is open already.

        The words of an `error` may quote a row: they are told and not kept.
        """
        with self._lock:
            if facts["trouble"] in self._open:
                return
            self._open[facts["trouble"]] = Open(event, dict(facts))
            self._tell(event, {**facts, "error": error} if error else facts, "began")
            self._keep()

    def ended(self, trouble: str, facts: Mapping[str, Any] | None = None) -> None:
        """Tell that it is over, with its facts and these; nothing when it is not open."""
        with self._lock:
            known = self._open.pop(trouble, None)
            if known is None:
                return
            self._tell(known.event, {**known.facts, **(facts or {})}, "ended")
            self._keep()

    def _keep(self) -> None:
        with suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(list(self._open.values())), durable=False, mode=0o600)
