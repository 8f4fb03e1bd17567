"""The search for parameters (Optuna): which are tried next, and what is kept of those tried.

Trials are proposed in rounds of `TOGETHER`, each from the rounds before it and from its own number alone. So one
process or many, in one go or killed and gone on with: the same seed and the same number of trials find the same.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from monitoring.files import write_atomically
from training.families import FAMILIES, SPACES, Boosting, Parameters, Range, parameters_of
from training.trial import FOLDS, Outcome, Scores, worth

TOGETHER: Final = 4
"""Trials of a round; so many workers can be busy at once."""
FREE: Final = 8
"""Trials before which the sampler draws at random."""
PATIENT: Final = {**Boosting().model_dump(), "learning_rate": 0.05, "max_iter": 300, "max_features": 0.5}
"""Boosting that learns slowly and looks at half of the features: worth a look on any data."""
REFINED_EVERY: Final = 4
"""Rounds; then the best so far is tried with its answers calibrated, too."""
MOST_NODES: Final = 150_000
"""Of all trees at most, so that the model can have an ONNX twin (`training.convert.MAX_TREE_NODES`)."""
BEHIND: Final = 0.05
"""A family all of whose trials lose this share of the start's loss, or more, on the first fold is not drawn again."""
KEPT: Final = 5
"""Files of studies that stay beside a new one."""

Evaluate = Callable[[dict[str, Any], Scores | None, Sequence[float], float], Outcome]
"""`training.trial.evaluate` of some folds."""
Run = Callable[[Sequence[dict[str, Any]], Scores | None, Sequence[float], float], Iterable[Outcome]]
"""The same for several parameters: the outcomes come in their order."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that is over."""

    number: int
    parameters: dict[str, Any]
    drawn: bool  # from the space, by the sampler
    scores: Scores
    worth: float | None  # of the folds judged; None: one has no score, or it failed
    error: str = ""
    spent: float  # seconds of the whole search when it was over

    @property
    def finished(self) -> bool:
        """Whether it was not given up halfway, and did not fail."""
        return len(self.scores) == FOLDS and not self.error

    @property
    def score(self) -> float:
        """The mean of its folds; minus infinity when it did not finish."""
        return statistics.fmean(map(_mean, self.scores)) if self.finished else -math.inf

    @property
    def value(self) -> float:
        """What is maximised."""
        return _number(self.worth) if self.finished else -math.inf


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """The best parameters found, and every trial in the order tried."""

    parameters: Parameters
    trials: tuple[Trial, ...]
    ended: str  # trials | time
    resumed: int = 0  # trials that another process had done


class _Head(msgspec.Struct, frozen=True):
    """The first line of a study's file."""

    first: list[dict[str, Any]]
    format: int = 1


def search(
    run: Run,
    *,
    trials: int,
    seconds: float = 300.0,
    seed: int = 0,
    start: Parameters | None = None,
    families: Sequence[str] = tuple(FAMILIES),
    classes: int = 0,
    rare: bool = False,
    counts: bool = False,
    file: Path | None = None,
) -> Study:
    """The parameters that are worth most among at most `trials`, none begun later than after `seconds`.

    The first trial is `start` (default: the defaults), against which the others are held; then the defaults of each
    family. `classes` is 0 for a regression; with `rare` classes weights are tried, for `counts` (a target that is never
    negative) Poisson's loss. `file` keeps each trial as it ends, and what it has is not tried again. The same arguments
    give the same trials, as long as `seconds` do not end them.
    """
    first = start or Boosting()
    done, hints = _opened(file, first, families, classes, counts)
    done = done[:trials]
    resumed, spent, began = len(done), done[-1].spent if done else 0.0, time.monotonic()

    def now() -> float:
        return spent + time.monotonic() - began

    late = False
    while len(done) < trials and not late and (not done or now() < seconds):
        asked = _round(done, hints, seed, families, classes, rare, counts, trials)
        base = done[0].scores if done else None
        if base is None:
            asked = asked[:1]  # the start is tried however little time there is
        whole = len(done) - len(done) % TOGETHER
        bar = _bar(done[: max(whole, 1)])  # of whole rounds, as the proposals; of the first one its start
        outcomes = run([each for each, _ in asked], base, bar, math.inf if base is None else seconds - now())
        for (parameters, drawn), outcome in zip(asked, outcomes, strict=False):
            if late := outcome.late:
                break
            value = -math.inf if outcome.error else worth(outcome.scores, outcome.scores if base is None else base)
            trial = Trial(
                number=len(done),
                parameters=parameters,
                drawn=drawn,
                scores=outcome.scores,
                worth=value if math.isfinite(value) else None,
                error=outcome.error,
                spent=now(),
            )
            done.append(trial)
            _append(file, trial)
    best = max(done, key=lambda trial: trial.value, default=None)
    return Study(
        parameters=first if best is None or best.value <= 0 else parameters_of(best.parameters),
        trials=tuple(done),
        ended="trials" if len(done) == trials else "time",
        resumed=resumed,
    )


def in_turn(evaluate: Evaluate) -> Run:
    """One trial after the other, in this process."""

    def run(
        asked: Sequence[dict[str, Any]], base: Scores | None, bar: Sequence[float], seconds: float
    ) -> Iterator[Outcome]:
        began = time.monotonic()
        for parameters in asked:
            yield evaluate(parameters, base, bar, seconds - (time.monotonic() - began))

    return run


# -- what is tried next --------------------------------------------------------------------------------------------


def _round(
    done: Sequence[Trial],
    hints: Sequence[dict[str, Any]],
    seed: int,
    families: Sequence[str],
    classes: int,
    rare: bool,
    counts: bool,
    trials: int,
) -> list[tuple[dict[str, Any], bool]]:
    """What is left to try of the round that is under way: (parameters, whether the sampler drew them)."""
    begin = len(done) - len(done) % TOGETHER
    before = done[:begin]
    fixed = [*hints[begin : begin + TOGETHER]]
    if begin >= len(hints) and (classes or counts) and begin // TOGETHER % REFINED_EVERY == REFINED_EVERY - 1:
        fixed = _refined(before, classes, rare)[:TOGETHER]
    asked: list[tuple[dict[str, Any], bool]] = [(each, False) for each in fixed]
    end = min(begin + TOGETHER, trials)
    if numbers := range(begin + len(asked), end):
        asked += [(each, True) for each in _drawn(before, numbers, hints, seed, families, classes)]
    return asked[len(done) - begin : end - begin]


def _refined(done: Sequence[Trial], classes: int, rare: bool) -> list[dict[str, Any]]:
    """The best so far, calibrated; with each class weighing the same, calibrated; for counts, with the other loss."""
    best = max(done, key=lambda trial: trial.value).parameters
    changes = [{"calibration": "sigmoid", "class_weight": "none"}]
    changes += [{"calibration": "sigmoid", "class_weight": "balanced"}] if rare else []
    if not classes:
        other = {"poisson": "squared_error", "squared_error": "poisson"}
        changes = [{"loss": other[best["loss"]]}] if "loss" in best else []
    made = [parameters_of({**best, **change}).model_dump() for change in changes]
    return [each for each in made if all(each != trial.parameters for trial in done)]


def _drawn(
    done: Sequence[Trial],
    numbers: Iterable[int],
    hints: Sequence[dict[str, Any]],
    seed: int,
    families: Sequence[str],
    classes: int,
) -> list[dict[str, Any]]:
    """What Optuna's sampler proposes for each number after these trials (tree-structured Parzen estimator)."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        spaces = {family: _space(family, hints) for family in families if not _is_behind(family, done)}
        spaces = spaces or {family: _space(family, hints) for family in families}
        best = max(done, key=lambda trial: trial.value).parameters if done else {}
        study = optuna.create_study(direction="maximize")
        study.add_trials([_as_optuna(trial, spaces) for trial in done if _in_space(trial, spaces)])
        found = []
        for number in numbers:
            # Not one sampler for all: where its random numbers stand would depend on what this process has done.
            own = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
            study.sampler = optuna.samplers.TPESampler(seed=own, n_startup_trials=FREE)
            trial = study.ask()
            family = str(trial.suggest_categorical("family", list(spaces)))
            values: dict[str, Any] = {"family": family}
            if family == "boosting" and "loss" in best:
                values["loss"] = best["loss"]
            for name, (scale, low, high) in spaces[family].items():
                key = f"{family}.{name}"
                if "integer" in scale:
                    values[name] = trial.suggest_int(key, int(low), int(high), log="log" in scale)
                else:
                    values[name] = trial.suggest_float(key, low, high, log=scale == "log")
            found.append(_bounded(values, classes))
    finally:
        optuna.logging.set_verbosity(before)
    return found


def _is_behind(family: str, done: Sequence[Trial]) -> bool:
    firsts = [_mean(trial.scores[0]) for trial in done if trial.parameters["family"] == family and trial.scores]
    base = _mean(done[0].scores[0]) if done and done[0].scores else -math.inf
    return bool(firsts) and math.isfinite(base) and max(firsts) < base - BEHIND * abs(base)


def _space(family: str, hints: Sequence[dict[str, Any]]) -> dict[str, Range]:
    """The family's space, widened by the values of those that are tried first."""
    known = [each for each in hints if each["family"] == family]
    return {
        name: Range(scale, min([low, *(each[name] for each in known)]), max([high, *(each[name] for each in known)]))
        for name, (scale, low, high) in SPACES[family].items()
    }


def _bounded(values: dict[str, Any], classes: int) -> dict[str, Any]:
    """These parameters with so few leaves that the model can be converted."""
    drawn = parameters_of(values)
    trees = drawn.trees(classes)
    if trees and trees * (2 * values["max_leaf_nodes"] - 1) > MOST_NODES:
        drawn = drawn.model_copy(update={"max_leaf_nodes": max(2, (MOST_NODES // trees + 1) // 2)})
    return drawn.model_dump()


def _in_space(trial: Trial, spaces: dict[str, dict[str, Range]]) -> bool:
    plain = trial.parameters.get("calibration") == "none" == trial.parameters.get("class_weight")
    return plain and trial.parameters["family"] in spaces and trial.worth is not None


def _as_optuna(trial: Trial, spaces: dict[str, dict[str, Range]]) -> Any:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    family = trial.parameters["family"]
    distributions: dict[str, BaseDistribution] = {"family": CategoricalDistribution(list(spaces))}
    values: dict[str, Any] = {"family": family}
    for name, (scale, low, high) in spaces[family].items():
        value = trial.parameters[name]
        if "integer" in scale:
            # `_bounded` may have taken leaves away, below the space.
            kind: BaseDistribution = IntDistribution(min(int(low), value), int(high), log="log" in scale)
        else:
            kind = FloatDistribution(low, high, log=scale == "log")
        distributions[f"{family}.{name}"], values[f"{family}.{name}"] = kind, value
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if trial.finished else optuna.trial.TrialState.PRUNED,
        params=values,
        distributions=distributions,
        value=trial.value if trial.finished else None,
        intermediate_values={len(trial.scores): _number(trial.worth)},
    )


def _bar(done: Sequence[Trial]) -> list[float]:
    """What a trial must be worth after each fold to go on: half of what the best was there, and more than nothing."""
    if not done:
        return []
    best, base = max(done, key=lambda trial: trial.value), done[0].scores
    return [max(0.0, worth(best.scores[: at + 1], base) / 2) for at in range(FOLDS - 1)] if best.finished else []


def _number(value: float | None) -> float:
    return -math.inf if value is None else value


def _mean(blocks: Sequence[float]) -> float:
    return statistics.fmean(blocks) if blocks else -math.inf


# -- the file ------------------------------------------------------------------------------------------------------


def _opened(
    file: Path | None, start: Parameters, families: Sequence[str], classes: int, counts: bool
) -> tuple[list[Trial], list[dict[str, Any]]]:
    """The trials that a study's file has, and what this study tries first; a new file is begun.

    A study of other rows that lies beside it is where a killed search stood: its best is tried as well.
    """
    patient = [_bounded(PATIENT, classes)] if "boosting" in families else []
    patient += [{**each, "loss": "poisson"} for each in patient if counts]
    defaults = [FAMILIES[family]().model_dump() for family in families]
    first = [start.model_dump(), Boosting().model_dump(), *patient, *defaults]
    if file is None:
        return [], _distinct(first)
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    whole = [line for line in lines if line.endswith(b"\n")]  # the last one may be torn
    if whole:
        head = msgspec.json.decode(whole[0], type=_Head)
        write_atomically(file, b"".join(whole))
        return [msgspec.json.decode(line, type=Trial) for line in whole[1:]], head.first
    file.parent.mkdir(parents=True, exist_ok=True)
    others = sorted(file.parent.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT:]:
        old.unlink(missing_ok=True)
    best = next((found for other in others[:1] if (found := _best_of(other)) is not None), None)
    hints = _distinct([first[0], *([best] if best else []), *first[1:]])
    write_atomically(file, msgspec.json.encode(_Head(hints)) + b"\n")
    return [], hints


def _best_of(file: Path) -> dict[str, Any] | None:
    """The best parameters in a study's file; None when it has none that this release knows."""
    try:
        trials = [msgspec.json.decode(line, type=Trial) for line in file.read_bytes().split(b"\n")[1:-1]]
        best = max(trials, key=lambda trial: trial.value, default=None)
        return None if best is None or not best.finished else parameters_of(best.parameters).model_dump()
    except (msgspec.DecodeError, ValueError):
        return None


def _distinct(given: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for each in given:
        if each not in found:
            found.append(each)
    return found


def _append(file: Path | None, trial: Trial) -> None:
    if file is None:
        return
    with file.open("ab") as opened:
        opened.write(msgspec.json.encode(trial) + b"\n")
        opened.flush()
        os.fsync(opened.fileno())
