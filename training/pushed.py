"""A pushed model: does it fit the schema, and is it better than the champion?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from monitoring.feature import AT, ORIGIN
from monitoring.fits import iso
from training.artefact import read_manifest
from training.data import content_digest, read_snapshot
from training.fitting import refreshed
from training.gates import GatePolicy
from training.interface import check_interface
from training.judgement import Judged, finish, schema_of
from training.onnx_file import is_onnx, load_onnx
from training.pipeline import final_of
from training.spec import JobError, JobResult, JobSpec
from training.split import Split, TrainPolicy, champions_holdout, holdout_facts, known_rows, split
from training.trust import load_skops

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema


UNKNOWN: Final = (
    "whether the pushed model was fitted to rows of the holdout is not known: push it with --trained-until to have it "
    "judged on later rows only"
)


def judge_pushed(spec: JobSpec, out: Path) -> JobResult:
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    if spec.pushed is None:
        raise JobError("a judge job needs `pushed`, the path of a skops or ONNX file")
    schema = schema_of(spec)
    path = Path(spec.pushed)
    pipeline = load_onnx(path, schema) if is_onnx(path) else load_skops(path, spec.trusted)
    check_interface(pipeline, schema)
    frame = read_snapshot(Path(spec.snapshot), schema)
    notes: tuple[str, ...]
    if spec.pushed_until is not None:
        rows = _later(frame, spec, policy, gates.min_holdout_rows)
        notes = (f"judged on rows after {iso(spec.pushed_until)}, up to which it was fitted as who pushed it says",)
    else:
        rows, notes = _newest(frame, spec, schema, policy, gates.min_holdout_rows)
        notes += (UNKNOWN,)
    data = {
        "snapshot": content_digest(frame),
        "rows": None,
        "known": len(frame),
        "holdout": holdout_facts(frame, rows),
    }
    recorded = frame.loc[frame[ORIGIN] == "record", AT]
    return finish(
        spec,
        out,
        Judged(frame, rows, pipeline),
        pipeline,
        refreshed(schema, known_rows(frame, rows.holdout, policy)),
        manifest={"parameters": _simple_parameters(pipeline), "data": data},
        windows=(),
        until=float(recorded.iloc[-1]) if len(recorded) else 0.0,  # as if fitted to everything known when it came
        notes=notes,
    )


def _newest(
    frame: pd.DataFrame, spec: JobSpec, schema: FeatureSchema, policy: TrainPolicy, at_least: int
) -> tuple[Split, tuple[str, ...]]:
    """The rows that would judge a training now; when there are too few of them, those that judged the champion."""
    if spec.champion is None:
        return split(frame, schema, policy, at_least, first=True), ()
    try:
        return split(frame, schema, policy, at_least, champion_until=spec.champion_until), ()
    except JobError as reason:
        then = read_manifest(Path(spec.champion)).data.holdout
        rows, note = champions_holdout(frame, then, policy, at_least, str(reason))
        return rows, (note,)


def _later(frame: pd.DataFrame, spec: JobSpec, policy: TrainPolicy, at_least: int) -> Split:
    """All rows that neither the pushed model nor the champion has learnt. Raises `JobError` when they are too few."""
    until = float(spec.pushed_until or 0.0)
    later = (frame[AT] > until).to_numpy()
    if spec.champion is not None:
        later &= ((frame[ORIGIN] == "record") & (frame[AT] > spec.champion_until)).to_numpy()
    holdout = np.flatnonzero(later)[-max(policy.max_holdout_rows, at_least) :]
    if len(holdout) < at_least:
        than = "" if spec.champion is None else ", and later than what the champion was fitted to"
        raise JobError(
            f"the pushed model cannot be judged yet: {len(holdout)} labelled rows are later than {iso(until)}, up to "
            f"which it was fitted{than}; judging needs {at_least}: push it again when these have come, or one that "
            "was fitted to older rows"
        )
    everything = np.arange(len(frame))
    origin = " and ".join(sorted(set(frame[ORIGIN].iloc[holdout])))
    return Split(np.setdiff1d(everything, holdout), holdout, everything, origin)


def _simple_parameters(pipeline: Any) -> dict[str, Any]:
    final = final_of(pipeline)
    given = final.get_params(deep=False) if hasattr(final, "get_params") else {}
    return {name: value for name, value in given.items() if isinstance(value, (bool, int, float, str, type(None)))}
