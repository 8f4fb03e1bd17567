"""A fitted pipeline -> the artefact folder of a version: the skops file, its ONNX twin, its compiled trees, and what is
known of them.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from monitoring.files import write_atomically
from training.artefact import PIPELINE, REFERENCE, SCHEMA, TREES, TWIN, write_manifest
from training.convert import convert
from training.flatten import flatten
from training.manifest import Manifest, Parity
from training.onnx_file import OnnxModel
from training.pipeline import final_of
from training.trust import to_skops

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema


def export(
    pipeline: Any,
    schema: FeatureSchema,
    folder: Path,
    *,
    check_frame: pd.DataFrame,
    reference: pd.DataFrame | None = None,
    manifest: Mapping[str, Any],
) -> Manifest:
    """Write the artefact `folder` (made when absent) and return its manifest.

    `check_frame` holds canonical features, `reference` the drift reference (canonical features, `_label`,
    `_prediction`, `_score`), `manifest` what the exporter does not find out itself: name, origin, data, ….
    The twin and the compiled trees, the parity of each, `libraries`, `machine`, `estimator` and the digests are added
    here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SCHEMA, schema.to_json())
    if reference is not None:
        reference.to_parquet(folder / REFERENCE, index=False)
    model: bytes | None
    trees: bytes | None
    plan: Any
    if isinstance(pipeline, OnnxModel):
        model, plan = pipeline.content, msgspec.to_builtins(pipeline.plan)
        parity = Parity(0, None, True, "pushed as ONNX: it is the model itself")
        trees, exact = None, Parity(0, None, False, "pushed as ONNX, which serves")
    else:
        write_atomically(folder / PIPELINE, to_skops(pipeline))
        model, plan, parity = convert(pipeline, schema, check_frame)
        if model is None:
            trees, exact = None, Parity(0, None, False, "it has no ONNX twin, which would say how its matrix is made")
        else:
            trees, exact = flatten(pipeline, schema, check_frame, model, plan)
    for name, content in ((TWIN, model), (TREES, trees)):
        if content is not None:
            write_atomically(folder / name, content)
        else:
            (folder / name).unlink(missing_ok=True)
    return write_manifest(
        folder,
        {
            **manifest,
            "task": schema.task,
            "estimator": type(final_of(pipeline)).__name__,
            "libraries": libraries(),
            "machine": machine(),
            "twin": plan,
            "parity": msgspec.to_builtins(parity),
            "trees": msgspec.to_builtins(exact),
        },
    )


def libraries() -> dict[str, str]:
    """The versions that can change what a model computes."""
    names = ("scikit-learn", "numpy", "pandas", "skops", "onnx", "onnxruntime", "skl2onnx")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def machine() -> str:
    """The kind of machine, as far as it can change what a model computes: `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"
