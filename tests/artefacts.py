"""Real artefact folders of small models, for the tests that serve them."""

from __future__ import annotations

import functools
import subprocess
import sys
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


@functools.cache
def _example() -> dict[str, Any]:
    return sample_schema()[0].example()


def example_record(**changes: Any) -> dict[str, Any]:
    """One record that the sample's schema takes."""
    return {**_example(), **changes}


def modules_of_an_answer(folder: Path) -> set[str]:
    """What a process has imported that loaded the version's twin and answered one record with two probabilities."""
    program = (
        "import sys, pathlib, json; from training.artefact import verify; from training.twin import Twin\n"
        "folder = pathlib.Path(sys.argv[1]); twin = Twin(folder, verify(folder))\n"
        "from monitoring.decode import RequestDecoder\n"
        "from monitoring.schema import FeatureSchema\n"
        "schema = FeatureSchema.from_json((folder / 'schema.json').read_bytes())\n"
        "body = json.dumps({'records': [schema.example()]}).encode()\n"
        "assert twin.predict(RequestDecoder(schema, 1).decode(body)).shape == (1, 2)\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
