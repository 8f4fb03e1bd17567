"""One small file in which the controller says how the record and the lease stand, for `/manage/status`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from service.live import replace_file

NAME: Final = "controller.json"


class ControllerStatus(msgspec.Struct, frozen=True):
    """How the controller of one server stands."""

    at: float
    leader: bool = False
    holder: str = ""
    spool_bytes: int = 0
    drain_lag_s: float = 0.0
    store_error: str = ""


def write_status(run_dir: Path, status: ControllerStatus) -> None:
    """Leave word in the server's folder."""
    replace_file(run_dir / NAME, msgspec.json.encode(status), durable=False)


def read_status(run_dir: Path) -> ControllerStatus | None:
    """The controller's last word, None before its first."""
    try:
        return msgspec.json.decode((run_dir / NAME).read_bytes(), type=ControllerStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
