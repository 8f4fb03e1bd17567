"""The hyper-parameter study (Optuna)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from training.pipeline import SPACE, Parameters


class Study(msgspec.Struct, frozen=True):
    """The best parameters found, and every trial as (parameters, score) in the order tried."""

    parameters: dict[str, Any]
    score: float
    trials: tuple[tuple[dict[str, Any], float], ...]


def search(
    score: Callable[[Parameters], float],
    *,
    trials: int,
    seconds: float = 300.0,
    seed: int = 0,
    start: Parameters | None = None,
) -> Study:
    """The parameters with the highest `score` among at most `trials`, begun within `seconds`.

    The first trial is `start` (default: the defaults), so the outcome is never worse than that by this score. With at
    most one trial Optuna is not imported; with none nothing is fitted either and the score is NaN. The same seed gives
    the same trials, as long as `seconds` do not end them.
    """
    first = start or Parameters()
    if trials <= 0:
        return Study(first.model_dump(), float("nan"), ())
    if trials == 1:
        value = score(first)
        return Study(first.model_dump(), value, ((first.model_dump(), value),))

    import optuna

    fixed = {name: value for name, value in first.model_dump().items() if name not in SPACE}
    tried: list[tuple[dict[str, Any], float]] = []

    def objective(trial: optuna.Trial) -> float:
        drawn: dict[str, Any] = {}
        for name, (scale, lowest, highest) in SPACE.items():
            begin = getattr(first, name)
            low, high = min(lowest, begin), max(highest, begin)  # a start outside of the space widens it
            if scale == "integer":
                drawn[name] = trial.suggest_int(name, int(low), int(high))
            else:
                drawn[name] = trial.suggest_float(name, low, high, log=scale == "log")
        parameters = Parameters(**fixed, **drawn)
        value = score(parameters)
        tried.append((parameters.model_dump(), value))
        return value

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial({name: value for name, value in first.model_dump().items() if name in SPACE})
        study.optimize(objective, n_trials=trials, timeout=seconds, catch=())
    finally:
        optuna.logging.set_verbosity(before)
    parameters, value = max(tried, key=lambda entry: entry[1])
    return Study(parameters, value, tuple(tried))
