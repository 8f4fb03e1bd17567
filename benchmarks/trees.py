"""How fast is the compiled engine for trees beside ONNX, and does it answer as scikit-learn does?

`python -m benchmarks.trees [--parity ROWS] [--fuzz FILES] [--check]`

Histogram gradient boosting on random rows, in one process on one thread: the same model by onnxruntime and by each way
of `training/trees.c`, taking turns; microseconds a call are the least of the repeats, ratios those of the least. Then
every kind of model that the engine knows answers random rows (missing values, thresholds hit exactly, their float32
neighbours) as scikit-learn does, and damaged files are loaded under AddressSanitizer (`benchmarks/fuzz_trees.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import sklearn.ensemble  # noqa: F401  (its OpenMP must be loaded to be bounded)
from threadpoolctl import threadpool_limits

from benchmarks import fuzz_trees, report
from monitoring.schema import FeatureSchema
from training.convert import convert
from training.flatten import flatten
from training.parity import EXACT
from training.pipeline import build
from training.session import open_session
from training.trees import Trees, ways

SEED: Final = 3
ROWS: Final = (1, 8, 32, 256, 1_000, 10_000)
TREES: Final = (50, 100, 300)
LEAVES: Final = (8, 31, 63)
FEATURES: Final = (10, 100)
CROSSINGS: Final = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
FIT_ROWS: Final = 20_000
LARGE: Final = 1_000
FASTER: Final = 4.0
"""What `--check` asks of 1,000 rows of 100 trees with 31 leaves, against onnxruntime."""
DOES_NOT_SHOW: Final = (
    "What a request costs around the trees: `benchmarks.serving`.",
    "Trees of more than 63 leaves, of which the parity has some; of more than 256 all rows are walked.",
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Model:
    """One model in both forms."""

    session: Any
    trees: Trees
    matrix: Array

    def onnx(self, rows: int) -> Callable[[], Any]:
        given, outputs = {"X": self.matrix[:rows]}, [self.session.get_outputs()[-1].name]
        return lambda: self.session.run(outputs, given)

    def compiled(self, rows: int, way: str | None = None) -> Callable[[], Any]:
        part = self.matrix[:rows]
        return lambda: self.trees.predict(part, way)


def models(trees: tuple[int, ...], leaves: int, features: int) -> Iterator[tuple[int, Model]]:
    """Models with the first so many trees of one fit."""
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(FIT_ROWS, features)).astype(np.float32)
    x[rng.random(x.shape) < 0.02] = np.nan
    y = np.nansum(x[:, :5] * [1, -1, 0.5, 2, 1], axis=1) + rng.normal(size=FIT_ROWS) > 0
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(features)]).assign(y=y.astype(int))
    schema = FeatureSchema.infer(frame, "y")
    known = schema.canonical(frame)
    pipeline = build(schema, {"max_iter": max(trees), "max_leaf_nodes": leaves}).fit(known, schema.labels(frame["y"]))
    whole = pipeline[-1]._predictors
    for many in trees:
        pipeline[-1]._predictors = whole[:many]
        model, plan, parity = convert(pipeline, schema, known)
        assert model is not None and plan is not None, parity.reason
        compiled, exact = flatten(pipeline, schema, known, model, plan)
        assert compiled is not None, exact.reason
        yield many, Model(open_session(model, "the benchmark's model"), Trees(compiled), x[: max(ROWS)].copy())


def least_us(calls: list[Callable[[], Any]], rows: int) -> list[float]:
    """The least time of each call, taking turns."""
    found = [float("inf")] * len(calls)
    for _ in range(300 if rows <= 64 else 60 if rows <= 256 else 30 if rows <= LARGE else 5):
        for at, call in enumerate(calls):
            began = time.perf_counter()
            call()
            found[at] = min(found[at], (time.perf_counter() - began) * 1e6)
    return found


def measure(say: Callable[[str], None]) -> float:
    """Print the tables; onnxruntime's time over ours for 1,000 rows of 100 trees with 31 leaves and 10 features."""
    kinds = ways()
    table, crossings, asked = [], [], 0.0
    for features in FEATURES:
        for leaves in LEAVES:
            for many, model in models(TREES, leaves, features):
                cells = []
                for rows in ROWS:
                    onnx, ours = least_us([model.onnx(rows), model.compiled(rows)], rows)
                    cells.append(f"{report.number(onnx)} / {report.number(ours)} = {onnx / ours:.1f}")
                    if (rows, many, leaves, features) == (LARGE, 100, 31, 10):
                        asked = onnx / ours
                table.append((f"{many} trees, {leaves} leaves, {features} features", *cells))
                turn = next((rows for rows in CROSSINGS if _bits_are_faster(model, rows, kinds)), 0)
                last = least_us([model.compiled(LARGE, way) for way in kinds], LARGE)
                one = least_us([model.compiled(1, kinds[0]), model.compiled(1, kinds[-1])], 1)
                crossings.append((table[-1][0], str(turn), *map(report.number, one), *map(report.number, last)))
    say("onnxruntime / compiled, µs a call = ratio, by rows at once\n")
    say(report.table(("model", *(f"{rows:,}" for rows in ROWS)), table))
    say("\nfrom how many rows bit vectors are faster than walks; one row each way; 1,000 rows by each way, µs\n")
    say(report.table(("model", "from", "1: walk", "1: bits", *kinds), crossings))
    return asked


def _bits_are_faster(model: Model, rows: int, kinds: list[str]) -> bool:
    walk, *bits = least_us([model.compiled(rows, way) for way in kinds], rows)
    return min(bits) <= walk


def hard_rows(rng: np.random.Generator, rows: int, thresholds: list[Array]) -> Array:
    """Random float32 rows: normal values, thresholds of the column, the float32 next below and above one, and NaN."""
    found = np.empty((rows, len(thresholds)), np.float32)
    for column, known in enumerate(thresholds):
        values = rng.normal(size=rows).astype(np.float32) * 3
        known = known[np.isfinite(known)]
        if len(known):
            near = rng.choice(known, rows).astype(np.float32)
            side = rng.integers(0, 6, rows)
            values = np.where(side == 0, near, values)
            values = np.where(side == 1, np.nextafter(near, np.float32(np.inf)), values)
            values = np.where(side == 2, np.nextafter(near, np.float32(-np.inf)), values)
        found[:, column] = values
    found[rng.random(found.shape) < 0.05] = np.nan
    return found


def kinds_of_models() -> Iterator[tuple[str, Any, bool, bool]]:
    """(name, unfitted estimator, whether it is a classifier of three classes, whether it takes missing values)."""
    from sklearn import ensemble
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.tree import DecisionTreeClassifier

    hist, three = ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingClassifier
    yield "histogram boosting", hist(max_iter=60, random_state=0), False, True
    yield "histogram boosting, 63 leaves", hist(max_iter=60, max_leaf_nodes=63, random_state=0), False, True
    yield "histogram boosting, 200 leaves", hist(max_iter=30, max_leaf_nodes=200, random_state=0), False, True
    yield "histogram boosting, three classes", three(max_iter=30, random_state=0), True, True
    yield "calibrated histogram boosting", CalibratedClassifierCV(hist(max_iter=30), cv=3, ensemble=False), False, True
    for kind in (ensemble.RandomForestClassifier, ensemble.ExtraTreesClassifier):
        for many in (False, True):
            model = kind(30, max_leaf_nodes=60, random_state=0)
            yield f"{kind.__name__}{', three classes' if many else ''}", model, many, True
        yield f"deep {kind.__name__}", kind(30, max_leaf_nodes=500, random_state=0), False, True
    calibrated = CalibratedClassifierCV(ensemble.RandomForestClassifier(30, max_leaf_nodes=60), cv=3, ensemble=False)
    yield "calibrated forest, three classes", calibrated, True, True
    yield "gradient boosting", ensemble.GradientBoostingClassifier(n_estimators=60, random_state=0), False, False
    yield "gradient boosting, three classes", ensemble.GradientBoostingClassifier(n_estimators=30), True, False
    yield "one tree", DecisionTreeClassifier(random_state=0), True, True
    regressors = (
        ensemble.HistGradientBoostingRegressor(max_iter=60, random_state=0),
        ensemble.HistGradientBoostingRegressor(loss="poisson", max_iter=60, random_state=0),
        ensemble.RandomForestRegressor(30, max_leaf_nodes=500, random_state=0),
        ensemble.ExtraTreesRegressor(30, max_leaf_nodes=60, random_state=0),
        ensemble.GradientBoostingRegressor(n_estimators=60, random_state=0),
    )
    for regressor in regressors:
        missing = not isinstance(regressor, ensemble.GradientBoostingRegressor)
        yield f"{type(regressor).__name__}, {getattr(regressor, 'loss', 'mean')}", regressor, False, missing


def parity(rows: int, say: Callable[[str], None]) -> float:
    """Print the largest difference of each kind of model over `rows` rows in all; the largest of all of them."""
    from training.flatten import ensemble_of
    from training.manifest import Column, Plan

    rng, found, worst, count = np.random.default_rng(SEED), [], 0.0, 0
    kinds = list(kinds_of_models())
    each = -(-rows // len(kinds))
    for name, model, three, missing in kinds:
        x = rng.normal(size=(3_000, 8)).astype(np.float32)
        x[:, 3] = np.round(x[:, 3])
        if missing:
            x[rng.random(x.shape) < 0.05] = np.nan
        score = np.nansum(x[:, :4], axis=1) + rng.normal(size=len(x))
        y: Any = (
            np.digitize(score, [-1, 1]) if three else score > 0 if hasattr(model, "predict_proba") else np.exp(score)
        )
        model.fit(x, y)
        plan = Plan(layout="matrix", output="", columns=tuple(Column(str(i)) for i in range(x.shape[1])))
        arrays = ensemble_of(model, plan)
        trees = Trees(arrays.encode())
        thresholds = [arrays.threshold[arrays.feature == column] for column in range(x.shape[1])]
        most, same, done = 0.0, True, 0
        while done < each:
            part = hard_rows(rng, min(20_000, each - done), thresholds)
            part = part if missing else np.nan_to_num(part)
            done += len(part)
            expected = np.asarray(model.predict_proba(part) if hasattr(model, "predict_proba") else model.predict(part))
            answers = [trees.predict(part, way).reshape(expected.shape) for way in ways()]
            same &= all(np.array_equal(answers[0], other) for other in answers[1:])
            most = max(most, float((np.abs(answers[0] - expected) / np.maximum(1, np.abs(expected))).max()))
        count += done
        worst = max(worst, most if same else float("inf"))
        found.append((name, f"{done:,}", f"{most:.1e}", "yes" if same else "NO"))
    say(f"\n{count:,} rows against scikit-learn's own answers (of a value above 1: of its size)\n")
    say(report.table(("model", "rows", "largest difference", "the same bits by every way"), found))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trees", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parity", type=int, default=1_000_000, metavar="ROWS", help="0: none")
    parser.add_argument("--fuzz", type=int, default=100_000, metavar="FILES", help="0: none")
    parser.add_argument("--no-times", action="store_true", help="parity and fuzzing alone")
    parser.add_argument("--check", action="store_true", help="exit 1, and say what does not hold")
    given = parser.parse_args()
    print(report.machine_text(report.machine()))
    print(f"seed {SEED}; ways of this machine: {', '.join(ways())}\n")
    wrong = []
    threadpool_limits(1)  # boosting's threads wait for each other on a busy machine
    if not given.no_times and (ratio := measure(print)) < FASTER:
        wrong.append(
            f"{LARGE:,} rows of 100 trees with 31 leaves are {ratio:.1f} times as fast as onnxruntime, not {FASTER:g}"
        )
    if given.parity and (apart := parity(given.parity, print)) > EXACT:
        wrong.append(f"a row differs by {apart:.1e}, more than {EXACT:g}, or by the way it was answered")
    if given.fuzz:
        print()
        problem = fuzz_trees.run(given.fuzz, SEED, print)
        wrong += [problem] if problem else []
    print()
    for line in DOES_NOT_SHOW:
        print(f"does not show: {line}")
    for line in wrong:
        print(f"does not hold: {line}")
    return 1 if given.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
