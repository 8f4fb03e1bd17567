"""A pushed model: does it fit the schema, and is it better than the champion?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monitoring.feature import AT, ORIGIN
from training.artefact import read_manifest
from training.data import content_digest, read_snapshot
from training.fitting import refreshed
from training.gates import GatePolicy
from training.interface import check_interface
from training.judgement import Judged, finish, schema_of
from training.pipeline import final_of
from training.spec import JobError, JobResult, JobSpec
from training.split import TrainPolicy, champions_holdout, holdout_facts, known_rows, split
from training.trust import load_skops


def judge_pushed(spec: JobSpec, out: Path) -> JobResult:
    policy, gates = TrainPolicy.model_validate(spec.training), GatePolicy.model_validate(spec.gates)
    if spec.pushed is None:
        raise JobError("a judge job needs `pushed`, the path of a skops file")
    schema = schema_of(spec)
    pipeline = load_skops(Path(spec.pushed), spec.trusted)
    check_interface(pipeline, schema)
    frame = read_snapshot(Path(spec.snapshot), schema)
    notes: tuple[str, ...] = ()
    first = spec.champion is None
    try:
        rows = split(frame, schema, policy, gates.min_holdout_rows, champion_until=spec.champion_until, first=first)
    except JobError as reason:
        if spec.champion is None:
            raise
        then = read_manifest(Path(spec.champion)).data.holdout
        rows, note = champions_holdout(frame, then, policy, gates.min_holdout_rows, str(reason))
        notes = (note,)
    notes += ("whether the pushed model was fitted to rows of the holdout is not known",)
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


def _simple_parameters(pipeline: Any) -> dict[str, Any]:
    final = final_of(pipeline)
    given = final.get_params(deep=False) if hasattr(final, "get_params") else {}
    return {name: value for name, value in given.items() if isinstance(value, (bool, int, float, str, type(None)))}
