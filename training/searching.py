"""What a training searches: where it starts, on which rows, and in which file its trials are kept."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from monitoring.feature import LABEL
from training.artefact import read_manifest
from training.data import content_digest
from training.export import libraries
from training.families import Boosting, Parameters, parameters_of
from training.own_pipeline import own_parameters
from training.trial import Folds, evaluate, folds_of
from training.tune import Run, Study, in_turn, search

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.schema import FeatureSchema
    from training.spec import JobSpec
    from training.split import TrainPolicy

RARE: Final = 0.2
"""Share of the rows below which a class is rare: weights are tried then."""


def starting_point(spec: JobSpec, policy: TrainPolicy) -> tuple[Parameters, tuple[str, ...]]:
    """The parameters of a training without a search, with which one begins; and what must be said of that.

    The pipeline of the user's own, when there is one; else what the job was given; else the champion's, when it was
    trained here; else the defaults.
    """
    if policy.pipeline:
        return own_parameters(policy.pipeline), ()
    if spec.parameters or spec.champion is None:
        return parameters_of(spec.parameters), ()
    champion = read_manifest(Path(spec.champion))
    if champion.origin == "push" or champion.parameters.get("family") == "own":
        return Boosting(), ()
    try:
        return parameters_of(champion.parameters), ()
    except ValueError as error:  # of a newer release, before it was taken back
        return Boosting(), (f"the champion's parameters are not known here ({error}): the defaults were taken",)


def searched(
    training: pd.DataFrame, schema: FeatureSchema, spec: JobSpec, policy: TrainPolicy, start: Parameters
) -> Study:
    """The study of these training rows; one without trials when none is wanted, or they are too few."""
    folds = folds_of(training, schema, policy, spec.seed)
    if not policy.trials or policy.pipeline or folds is None:
        return Study(parameters=start, trials=(), ended="")
    with _runner(folds, spec, policy) as run:
        return _searched(run, training, schema, spec, policy, start)


def _runner(folds: Folds, spec: JobSpec, policy: TrainPolicy) -> AbstractContextManager[Run]:
    if policy.backend == "local":
        return nullcontext(in_turn(partial(evaluate, folds)))
    from training.cluster import on_cluster

    return on_cluster(policy.scheduler_address, folds, spec.threads)


def _searched(
    run: Run, training: pd.DataFrame, schema: FeatureSchema, spec: JobSpec, policy: TrainPolicy, start: Parameters
) -> Study:
    shares = training[LABEL].value_counts(normalize=True) if schema.task != "regression" else None
    return search(
        run,
        trials=policy.trials,
        seconds=policy.tune_seconds,
        seed=spec.seed,
        start=start,
        families=policy.families,
        classes=len(schema.classes) if schema.task != "regression" else 0,
        rare=shares is not None and bool(np.min(shares) < RARE),
        counts=schema.task == "regression" and bool((training[LABEL] >= 0).all()) and bool((training[LABEL] > 0).any()),
        file=_file(training, schema, spec, policy, start),
    )


def _file(
    training: pd.DataFrame, schema: FeatureSchema, spec: JobSpec, policy: TrainPolicy, start: Parameters
) -> Path | None:
    """Where the trials are kept, by everything that decides what comes of them; more time or trials go on in it."""
    if spec.studies is None:
        return None
    what = [
        content_digest(training),
        schema.digest,
        spec.seed,
        start.model_dump(),
        policy.families,
        policy.model_dump(include={"inner_share", "min_rows", "block_rows", "judge_every", "purge_s"}),
        libraries(),
    ]
    return Path(spec.studies) / f"{hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:32]}.jsonl"
