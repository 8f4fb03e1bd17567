"""Real artefact folders of small models, for the tests that serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monitoring.schema import FeatureSchema
from service import sample
from training.export import export
from training.manifest import Manifest
from training.pipeline import build


def sample_schema(rows: int = 600, seed: int = 0) -> tuple[FeatureSchema, Any, Any]:
    """The sample's schema, canonical features and labels."""
    frame = sample.training_frame(rows, seed)
    schema = FeatureSchema.infer(frame, sample.TARGET, ignore=(sample.TIME,))
    return schema, schema.canonical(frame), schema.labels(frame[sample.TARGET])


def make_artefact(folder: Path, *, rows: int = 600, seed: int = 0, iterations: int = 20) -> Manifest:
    """A champion-like artefact of the sample stream in `folder`; returns its manifest."""
    schema, features, labels = sample_schema(rows, seed)
    pipeline = build(schema, {"max_iter": iterations}, seed).fit(features, labels)
    return export(pipeline, schema, folder, check_frame=features.head(100), manifest={"name": "evergreen"})


def example_record(**changes: Any) -> dict[str, Any]:
    """One record that the sample's schema takes."""
    schema, _, _ = sample_schema()
    return {**schema.example(), **changes}
