"""What a candidate must answer in a fresh server before it is promoted, and whether it did: the infra gate.

The job that judges leaves recorded rows as a client sends them, with what the candidate's own pipeline answers. Who
starts a server and asks it is above this package; here the answers are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from monitoring.feature import instant
from monitoring.files import write_atomically
from training.artefact import verify, write_manifest
from training.manifest import GateResult, Verdict
from training.parity import TOLERANCE, compare
from training.pipeline import predict

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.spec import JobResult

ROWS: Final = 200
"""Newest rows of the holdout that are asked."""
INFRA: Final = "infra"
_FILE: Final = "rehearsal.json"


class Rehearsal(msgspec.Struct, frozen=True):
    """Records as a client sends them, and what the candidate's own pipeline says of each."""

    records: list[dict[str, Any]]
    expected: list[Any]  # probabilities, rows by classes; for a regression one value a row


def write_rehearsal(out: Path, pipeline: Any, holdout: pd.DataFrame, schema: FeatureSchema) -> None:
    """Leave beside a job's output folder what a server is asked: the newest rows of the canonical `holdout`."""
    records = records_of(holdout.tail(ROWS), schema)
    expected = predict(pipeline, schema.frame(records), schema)
    content = msgspec.json.encode(Rehearsal(records, expected.tolist()))
    write_atomically(out.with_name(_FILE), content, durable=False, mode=0o600)


def read_rehearsal(out: Path) -> Rehearsal:
    """What the job with this output folder left. Raises FileNotFoundError when it left nothing."""
    return msgspec.json.decode(out.with_name(_FILE).read_bytes(), type=Rehearsal)


def records_of(frame: pd.DataFrame, schema: FeatureSchema) -> list[dict[str, Any]]:
    """Canonical rows as the JSON records that become them again."""
    columns: dict[str, list[Any]] = {}
    for feature in schema.features:
        gone = frame[feature.name].isna().tolist()
        values = frame[feature.name].tolist()
        if feature.kind == "boolean":
            values = [None if none else bool(value) for value, none in zip(values, gone, strict=True)]
        elif feature.kind == "datetime":
            values = [None if none else instant(value) for value, none in zip(values, gone, strict=True)]
        else:
            values = [None if none else value for value, none in zip(values, gone, strict=True)]
        columns[feature.name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def compared(asked: Rehearsal, said: list[Any], schema: FeatureSchema, seconds: float) -> GateResult:
    """The verdict on a server's answers to all records, in their order."""
    expected = np.asarray(asked.expected, dtype=np.float64)
    if schema.task == "regression":
        labels = expected
    else:
        labels = np.array(schema.classes, dtype=object)[expected.argmax(axis=1)]
    found = compare((expected, labels), np.asarray(said, dtype=np.float64), schema, len(expected))
    rows = f"{len(expected)} recorded rows over HTTP"
    if found.agrees:
        why = f"a fresh server answered {rows} as the candidate itself does, {seconds:.1f} s after it was started"
    else:
        why = f"a fresh server answered {rows}, but otherwise than the candidate itself: {found.reason}"
    return GateResult(INFRA, found.agrees, found.max_abs_difference, TOLERANCE, why)


def rehearsed(out: Path, result: JobResult, rehearse: Callable[[Path], GateResult]) -> JobResult:
    """The result with the infra gate's verdict, which stands in the artefact's manifest too."""
    verdict = result.verdict
    assert verdict is not None
    if result.passed:
        gate = rehearse(out)
    else:
        gate = GateResult(INFRA, True, None, None, "not asked: another gate has refused the candidate")
    verdict = Verdict(verdict.passed and gate.passed, (*verdict.gates, gate))
    if verdict.passed:
        write_manifest(out, verify(out).changed(verdict=msgspec.to_builtins(verdict)).document)
    return msgspec.structs.replace(result, verdict=verdict, passed=result.passed and gate.passed)
