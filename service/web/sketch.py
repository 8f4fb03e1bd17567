"""A version's reference in bins, made in a process of its own: reading Parquet would cost a worker 40 MB for good.

`python -m service.web.sketch FOLDER` prints it as JSON. A worker asks once a version (about a second) and keeps it.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.drift import OUTPUT
from monitoring.feature import PREDICTED, SCORE
from monitoring.schema import FeatureSchema
from service.process import INSTALL_ROOT
from service.web.bins import Sketch, categories, numbers
from training.artefact import REFERENCE, SCHEMA
from training.registry import UnknownVersion

if TYPE_CHECKING:
    from service.serving.management.managed import Managed

logger = logging.getLogger("evergreen.page")

WITHIN_S: Final = 60.0
KEPT: Final = 8
"""Versions."""
DAY_S: Final = 86_400.0

Sketches = dict[str, Sketch]
"""By feature, and the output under its name."""


class References:
    """The references of versions in bins. May be asked from several threads: one makes a version's, the others wait."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[str, Sketches]] = OrderedDict()
        self._lock = threading.Lock()

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


def sketches(folder: Path) -> Sketches:
    """Every feature of the reference in this artefact, and the output on the rows that the model was not fitted to."""
    import pyarrow.parquet as parquet

    schema = FeatureSchema.from_json((folder / SCHEMA).read_bytes())
    table = parquet.read_table(folder / REFERENCE)
    found: Sketches = {}
    for feature in schema.features:
        column = table.column(feature.name)
        if feature.kind == "categorical":
            found[feature.name] = categories(column.to_pylist())
        elif feature.kind == "boolean":
            found[feature.name] = categories([_truth(value) for value in column.to_pylist()])
        else:
            values = np.array(column.to_pylist(), dtype=np.float64)
            found[feature.name] = numbers(values * DAY_S if feature.kind == "datetime" else values)
    unseen = np.array(table.column("_holdout").to_pylist(), dtype=bool)
    answers = [value for value, kept in zip(table.column(PREDICTED).to_pylist(), unseen, strict=True) if kept]
    if schema.task == "binary":
        found[OUTPUT] = numbers(np.array(table.column(SCORE).to_pylist(), dtype=np.float64)[unseen])
    elif schema.task == "regression":
        found[OUTPUT] = numbers(np.array(answers, dtype=np.float64))
    else:
        found[OUTPUT] = categories([None if value is None else text_of(value) for value in answers])
    return found


def text_of(value: Any) -> str:
    """A class or a category as the page shows it."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _truth(value: float | None) -> str | None:
    return None if value is None or value != value else "true" if value else "false"


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(sketches(Path(sys.argv[1]))))
