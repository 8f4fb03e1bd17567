"""The references of versions in bins, as a worker keeps them: each is made once, by `sketch.py` in another process."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa

from service.process import INSTALL_ROOT
from service.web.bins import Sketch
from training.artefact import REFERENCE
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from pathlib import Path

    from service.serving.management.deployment import Managed

logger = logging.getLogger("evergreen.page")

WITHIN_S: Final = 60.0
KEPT: Final = 8
"""Versions."""

Sketches = dict[str, Sketch]
"""By feature, and what the model answers under `sketch.OUTPUT`."""


class References:
    """The references of versions in bins. May be asked from several threads: one makes a version's, the others wait."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[str, Sketches]] = OrderedDict()
        self._lock = threading.Lock()

    def soon(self, here: Managed, version: int) -> None:
        """Make the reference of a version in the background, so that whoever opens a histogram of it need not wait."""
        if version not in self._kept and not self._lock.locked():
            threading.Thread(target=self._ahead, args=(here, version), name="evergreen-reference", daemon=True).start()

    def _ahead(self, here: Managed, version: int) -> None:
        with suppress(sa.exc.SQLAlchemyError):  # whoever opens a histogram asks again, and is told
            self.of(here, version)

    def of(self, here: Managed, version: int) -> Sketches | None:
        """None when the artefact of the version is not on this host, or cannot be read."""
        try:
            folder = here.registry.path(version)
            digest = here.registry.manifest(version).digests.get(REFERENCE, "")  # another after an erasure
        except UnknownVersion:
            return None
        with self._lock:
            kept = self._kept.get(version)
            if kept is not None and kept[0] == digest:
                self._kept.move_to_end(version)
                return kept[1]
            made = _asked(folder)
            if made is not None:
                self._kept[version] = digest, made
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return made


def _asked(folder: Path) -> Sketches | None:
    command = [sys.executable, "-m", "service.web.sketch", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=WITHIN_S, check=True, cwd=INSTALL_ROOT, stdin=subprocess.DEVNULL
        )
        return msgspec.json.decode(done.stdout, type=Sketches)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        said = getattr(error, "stderr", b"") or b""
        logger.warning(
            "the reference in %s could not be read: %s %s", folder, error, said[-300:].decode(errors="replace")
        )
        return None
