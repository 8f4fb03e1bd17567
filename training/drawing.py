"""The job's part of a report: Evidently's page in its output folder (`training/job.py`)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pandas as pd

from monitoring.drift import DriftReport
from monitoring.report import write_html
from training.judgement import schema_of
from training.spec import DRAWN, JobError, JobResult, JobSpec


def draw(spec: JobSpec, out: Path) -> JobResult:
    """Draw the page of the rows in `spec.snapshot` against those in `spec.reference`."""
    if spec.reference is None:
        raise JobError("a report needs the rows that a window is compared with")
    write_html(
        pd.read_parquet(spec.reference),
        pd.read_parquet(spec.snapshot),
        schema_of(spec),
        out / DRAWN,
        report=msgspec.convert(spec.drift, DriftReport),
        heading=spec.heading,
        seed=spec.seed,
    )
    return JobResult(ok=True)
