"""The loop of `training/cycle.py` with this deployment's values in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from monitoring.feature import SchemaError
from service import sample
from service.control.rehearsal import rehearse
from service.revision import revision
from service.secret_file import home_id
from service.settings import SAMPLE, Settings, row_at
from training.data import Prepared, prepare, row_order, seconds_of
from training.loop import Loop
from training.registry import Registry
from training.rollout import KNOWN_S, live_workers
from training.runs import Runs
from training.source import DataError, load_source
from training.spec import JobResult, JobSpec
from training.storage import Storage
from training.subprocess_job import subprocess_job

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa

    from monitoring.schema import FeatureSchema


def assemble(
    settings: Settings,
    engine: sa.Engine,
    token: int,
    who: str,
    *,
    on_event: Callable[[str, Mapping[str, Any]], None],
    stopped: Callable[[], bool],
    meanwhile: Callable[[], None] = lambda: None,
) -> Loop:
    """The loop for the holder of the lease with this token.

    `stopped` ends a training that is under way; `meanwhile` is called again and again while one is.
    """
    training = settings.training

    def run_job(spec: JobSpec) -> JobResult:
        beside = {} if spec.kind == "adapt" else {"meanwhile": meanwhile}
        return subprocess_job(spec, timeout_s=training.timeout_s, stopped=stopped, **beside)

    return Loop(
        engine=engine,
        registry=registry(settings, engine),
        runs=Runs(engine),
        token=token,
        who=who,
        home=home_id(settings),
        seed=settings.model.seed,
        drift=settings.drift,
        quality=settings.quality,
        retrain=settings.retrain,
        gates=settings.gates.model_copy(
            update={"sensitive": tuple(dict.fromkeys((*settings.gates.sensitive, *settings.data.sensitive)))}
        ),
        training=training.policy,
        data_checks=settings.data_checks,
        adapt=settings.adapt,
        snapshots_dir=settings.snapshots_dir,
        storage=storage(settings),
        work_dir=settings.work_dir,
        studies_dir=settings.var / "studies",
        spool_dir=settings.spool_dir,
        reports_dir=settings.reports_dir,
        exports=settings.exports_url,
        exports_lock=settings.exports_lock,
        source=partial(source, settings),
        run_job=run_job,
        trusted_rows=partial(trusted_rows, settings) if settings.data.trusted_holdout else None,
        rehearse=partial(rehearse, settings, stopped=stopped, meanwhile=meanwhile) if settings.gates.infra else None,
        live_workers=lambda: live_workers(engine, KNOWN_S),
        on_event=on_event,
        clock=time.time,
        sleep=time.sleep,
        threads=training.threads,
        memory_mb=training.memory_mb,
        nice=training.nice,
        trusted=settings.security.trusted,
        git=revision(),
    )


def storage(settings: Settings) -> Storage | None:
    """What the replicas of this deployment share; None for one that is alone. Raises `StorageError`."""
    return Storage(settings.store.artefacts) if settings.store.artefacts else None


def registry(settings: Settings, engine: sa.Engine) -> Registry:
    """The versions of this deployment's model; those that are not on this host are copied from what replicas share."""
    return Registry(engine, settings.models_dir, settings.model.name, storage=storage(settings))


def source(settings: Settings) -> Prepared:
    """The configured data that trains the first version: labelled rows in time order, only the first part if so set.

    Raises `training.source.DataError` when the file cannot be used.
    """
    import pandas as pd

    data = settings.data
    task = None if data.task == "auto" else data.task
    if data.source == SAMPLE:
        frame = sample.training_frame(seed=settings.model.seed)
        target, ordered_by = sample.TARGET, sample.TIME
    else:
        target, ordered_by = data.target, data.time
        frame = load_source(data.source, columns=[name for name in (target, ordered_by, *data.ignore) if name])
        if ordered_by:
            # Read from all rows: a part of them may not tell a day from a month.
            at = pd.Series(seconds_of(frame[ordered_by], ordered_by), index=frame.index)
            frame = frame.assign(**{ordered_by: at})
        frame = frame.iloc[row_order(frame, time=ordered_by, shuffle=settings.model.seed if data.shuffle else None)]
    if data.first:
        frame = frame.head(row_at(data.first, len(frame)))
    private = [name for name in settings.privacy.names if name in frame.columns]
    return prepare(frame, target=target, time=ordered_by, ignore=(*data.ignore, *private), task=task)


def trusted_rows(settings: Settings, schema: FeatureSchema) -> pd.DataFrame:
    """The rows of `data.trusted_holdout` that have a label. Raises `DataError` when the file cannot be used."""
    target = schema.target
    try:
        frame = load_source(settings.data.trusted_holdout, columns=[*schema.names, target])
        prepared = prepare(frame, target=target, schema=schema)
    except (DataError, SchemaError) as error:
        raise DataError(f"data.trusted_holdout: {error}") from error
    rows: pd.DataFrame = prepared.frame
    return rows
