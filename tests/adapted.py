"""An adaptation put into force by hand, as the controller does it, and what it must answer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from monitoring.files import write_atomically
from service.handover import Live, LiveAdaptation, LiveVersion, write_live
from service.serving.worker import Worker
from tests.artefacts import sample_schema
from training.adaptation import Adaptation
from training.artefact import read_manifest
from training.experts import AdaptPolicy, Answered, Standing, make
from training.twin import Rows, Twin

POLICY = AdaptPolicy(residual_min_rows=100, windows=(300,), residual_windows=(300, 600))


def make_adaptation(artefact: Path, *, number: int = 17, version: int = 1, seed: int = 0) -> Adaptation:
    """One that has learnt, from labels that are all turned round, to say the contrary of the sample's champion."""
    schema, features, labels = sample_schema(seed=seed)
    twin = Twin(artefact, read_manifest(artefact))
    raw, x = twin.predict_with_matrix(Rows(features, schema.numeric_names, schema.categorical_names))
    names = {name: 100.0 for name in POLICY.names if name != "identity"}
    made = make(Answered(raw, x, 1 - np.asarray(labels)), "binary", Standing(names), POLICY, version=version, seed=seed)
    assert made is not None
    return msgspec.structs.replace(made.served, number=number)


def leave(folder: Path, adaptation: Adaptation) -> LiveAdaptation:
    """Its file below `folder`."""
    data = adaptation.encode()
    path = folder / f"{adaptation.version}-{adaptation.number}.adaptation"
    write_atomically(path, data, durable=False, mode=0o600)
    return LiveAdaptation(adaptation.number, str(path), hashlib.sha256(data).hexdigest())


def put_in_force(worker: Worker, artefact: Path, adaptation: Adaptation | None = None, **more: Any) -> Adaptation:
    """The worker answers with it when this returns."""
    found = adaptation or make_adaptation(artefact)
    named = leave(worker.settings.var / "adaptations", found)
    write_live(worker.settings.live_file, Live("evergreen", LiveVersion(found.version, str(artefact), named), **more))
    worker._look(0.0)
    return found
