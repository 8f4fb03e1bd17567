"""Adaptations for the benchmarks: made as the loop makes them, and put into force in a running server's store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from monitoring.schema import FeatureSchema
from monitoring.store import connect, leases
from service import sample
from service.handover import read_reports
from training.adaptation import Adaptation, Adapter
from training.adaptations import Adaptations
from training.artefact import read_manifest
from training.experts import AdaptPolicy, Answered, Standing, make
from training.lease import CONTROLLER
from training.twin import Rows, Twin

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from tests.real_server import Server

MATURED_ROWS: Final = 8_000
"""So many rows give every residual learner that the default policy knows, the largest of 60 trees too."""
FIRST_ROW: Final = 60_000
HEAVY: Final = 100.0
"""What each expert has been worth, so that every one of them is shipped: an adaptation cannot cost more."""


def with_every_expert(artefact: Path, version: int, seed: int) -> Adaptation:
    """An adaptation of this version's output by all experts of the default policy, from rows of the sample stream."""
    schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
    frame = sample.frame(MATURED_ROWS, start=FIRST_ROW, seed=seed)
    raw, x = _outputs(artefact, schema, schema.canonical(frame))
    policy = AdaptPolicy()
    truth = np.asarray(schema.labels(frame[sample.TARGET])) == schema.classes[1]
    standing = Standing({name: HEAVY for name in policy.names[1:]}, MATURED_ROWS)
    made = make(Answered(raw, x, truth.astype(int)), "binary", standing, policy, version=version, seed=seed)
    assert made is not None and {expert.name for expert in made.whole.experts} == set(policy.names)
    return made.served


def shifted(adaptation: Adaptation, logits: float) -> Adaptation:
    """Another one, whose output lies so much higher."""
    experts = tuple(
        msgspec.structs.replace(e, intercept=tuple(a + logits for a in e.intercept)) for e in adaptation.experts
    )
    return msgspec.structs.replace(adaptation, experts=experts)


def expected(artefact: Path, adaptation: Adaptation, records: Sequence[dict[str, Any]]) -> list[float]:
    """The probability of the second class that must be served for each record."""
    schema = FeatureSchema.from_json((artefact / "schema.json").read_bytes())
    raw, x = _outputs(artefact, schema, schema.frame(list(records)))
    found: list[float] = Adapter(adaptation).apply(raw, x)[:, 1].tolist()
    return found


class Store:
    """The adaptations in the store of a running server, written with the token of its own lease."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._engine = connect(server.settings.store_url)
        self._adaptations = Adaptations(self._engine)

    def next_number(self, version: int) -> int:
        """What `add` will return."""
        newest = self._adaptations.newest(version)
        return 1 if newest is None else newest.number + 1

    def add(self, version: int, adaptation: Adaptation) -> int:
        """Its number: it is in force from now on. Raises `LeaseLost` while the server holds no lease."""
        with self._engine.connect() as connection:
            token = connection.scalar(sa.select(leases.c.token).where(leases.c.name == CONTROLLER)) or 0
        return self._adaptations.add(
            version,
            kind="made",
            who="the benchmark",
            why="to be measured",
            served=adaptation,
            whole=adaptation,
            now=time.time(),
            token=token,
        )

    def wait(self, number: int, seconds: float = 30.0) -> None:
        """Until every worker of the server says that it answers with this one."""
        until = time.monotonic() + seconds
        while True:
            folders = (self._server.settings.var / "run").glob("*/workers")
            told = [report.adaptation for folder in folders for report in read_reports(folder)]
            if told and set(told) == {number}:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"adaptation {number} is not in force after {seconds:g} s: workers say {told}")
            time.sleep(0.02)


def _outputs(artefact: Path, schema: FeatureSchema, frame: pd.DataFrame) -> tuple[Any, Any]:
    """What the version answers to these canonical rows, and the matrix it reads."""
    rows = Rows(frame, schema.numeric_names, schema.categorical_names)
    return Twin(artefact, read_manifest(artefact)).predict_with_matrix(rows)
