"""The champion's recent answers and what became of them -> an adaptation: experts fitted, and weighed by their record.

Nothing here is retrained: the champion stays as it is, and each expert corrects its output (`training/adaptation.py`).
An expert earns its weight only on rows that were answered while it was in force, before their labels came: scoring
today's experts on yesterday's rows flatters them.

Sources: Janssen et al. 2008 and Vergouwe et al. 2017 (update a prediction model by recalibrating before revising it);
Wolpert 1992 (stacking); Cesa-Bianchi & Lugosi 2006, chapter 2 (the exponentially weighted average is never much worse
than the best expert). Pure: same values, same adaptation. scikit-learn and onnx are imported by the residual learners.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from monitoring.feature import Task
from training.adaptation import IDENTITY, Adaptation, Adapter, Expert, link, log_sum, losses
from training.trees import rounded_down

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

MIXTURE: Final = "trees"
"""In a served adaptation, what its experts' residual learners add, each times its weight."""
MAX_TREES: Final = 400
"""Trees of one residual learner over all classes: what it costs an answer."""


LEAST_TRUST: Final = 0.25
"""What labels count for at least, however many rows wait for theirs: of much traffic many wait for minutes only."""

FURTHEST: Final = 10.0
"""Times the error that 95 of 100 rows stay below: of normal errors, none in 10^80 lies beyond. Up to one row in 20 may
be an outlier (Huber 1981, winsorised residuals)."""


class AdaptPolicy(BaseModel):
    """How the champion's output is adapted. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="switch; off serves the champion's output as it is")
    windows: tuple[int, ...] = Field(
        (300, 1_000, 3_000), description="newest matured rows that recalibrations are fitted to, one pair for each"
    )
    residual_windows: tuple[int, ...] = Field(
        (1_000, 3_000, 8_000),
        description="newest matured rows that residual learners are fitted to; from 8,000 on they get 60 trees of 16 "
        "leaves, else 30 of 8; empty switches them off",
    )
    min_rows: int = Field(100, ge=20, description="matured rows of this champion that any expert needs")
    residual_min_rows: int = Field(
        400,
        ge=100,
        description="matured rows of this champion that a residual learner needs, and at least a quarter of its window",
    )
    rate: float = Field(
        0.03, gt=0, le=1, description="learning rate of the weights: how fast a better record becomes a larger weight"
    )
    half_life_rows: int = Field(
        6_000, ge=100, description="rows after which what an expert was worth counts half: the world moves on"
    )
    stale_rows: int = Field(
        3_000,
        ge=1,
        description="rows that wait for their labels by which what the labels say counts half (never less than a "
        "quarter): an expert knows the world of that long ago, and so does its record",
    )
    identity_prior: float = Field(
        0.2, gt=0, lt=1, description="weight of the unchanged output before anything is known"
    )
    residual_prior: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="weight of all residual learners together before anything is known; recalibrations have the rest",
    )
    min_weight: float = Field(
        0.01, ge=0, lt=0.5, description="experts below this weight are not shipped to the workers"
    )
    start_folds: int = Field(
        8,
        ge=2,
        le=20,
        description="models fitted besides when a version is trained, each to the rows before one part of the newest: "
        "their answers to those parts are what the version's first adaptation is made from",
    )
    every_rows: int = Field(
        50, ge=1, description="matured rows that must have come since the last adaptation before another is made"
    )
    guard_alpha: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="probability of a false alarm, over all groups of one check, with which the adapted output must be "
        "worse than the raw one before the raw one serves again",
    )
    guard_loss: float = Field(
        0.05,
        ge=0,
        description="what the adapted output must surely lose more a row than the raw one before that one serves "
        "again: nats of log loss; for regression twice the champion's mean squared error. Smaller harm is unlearnt",
    )
    rest_rows: int = Field(
        1_000, ge=1, description="matured rows after such a return before an adaptation is made again, from nothing"
    )
    much: float = Field(
        1.0,
        gt=0,
        description="how far outputs are moved (root mean square; logits, for regression the champion's errors) from "
        "which on the layer does much: as often as `much_for`, in a row, is an alert that a training is due",
    )
    much_for: int = Field(10, ge=1, description="adaptations in a row that moved outputs by `much`")
    max_move: float = Field(
        12.0,
        gt=0,
        description="how far an output may be moved: logits (between two classes; one that is sure and wrong says 9); "
        "for regression the champion's root mean squared errors",
    )

    @property
    def most_rows(self) -> int:
        """Matured rows that an adaptation is made from at most."""
        return max(*self.windows, *self.residual_windows)

    @model_validator(mode="after")
    def _something_is_left(self) -> AdaptPolicy:
        if self.identity_prior + self.residual_prior >= 1:
            raise ValueError(
                f"identity_prior {self.identity_prior:g} and residual_prior {self.residual_prior:g} leave nothing for "
                "the recalibrations: together they must be below 1"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every expert this policy may fit, the identity first."""
        return (
            IDENTITY,
            *(f"{kind}-{rows}" for rows in self.windows for kind in ("shift", "scale")),
            *(f"residual-{rows}" for rows in self.residual_windows),
            "residuals",
        )


class Answered(NamedTuple):
    """Matured rows with what one champion says of them, oldest first; none of them did it learn from."""

    raw: npt.NDArray[Any]
    """The champion's own output: probabilities n by classes, or n values."""
    x: npt.NDArray[np.float32]
    """What its twin reads, n by columns; without columns when there is no such matrix."""
    truth: npt.NDArray[Any]
    """n class numbers (each a class of the model), or n values."""

    def newest(self, rows: int) -> Answered:
        return Answered(self.raw[-rows:], self.x[-rows:], self.truth[-rows:])


class Made(NamedTuple):
    """One adaptation twice: as it answers, and with every expert that is scored, also those without weight now."""

    served: Adaptation
    whole: Adaptation


class Standing(msgspec.Struct, frozen=True):
    """What each expert has been worth so far: discounted loss of the identity minus its own, in units of the loss."""

    gains: dict[str, float] = {}
    rows: int = 0
    """Matured rows that were scored."""

    def halved(self) -> Standing:
        """What a new champion starts with: what helped the one before probably helps, but it is another model."""
        return Standing({name: gain / 2 for name, gain in self.gains.items()}, 0)


def score(standing: Standing, adapter: Adapter, rows: Answered, policy: AdaptPolicy, *, scale: float = 1.0) -> Standing:
    """The standing after these rows matured, which were answered while `adapter` was in force, oldest first."""
    n = len(rows.truth)
    if not n:
        return standing
    lost = losses(adapter.outputs(rows.raw, rows.x), rows.truth, adapter.adaptation.task, scale)
    keep = 0.5 ** (1 / policy.half_life_rows)
    ages = keep ** np.arange(n - 1, -1, -1.0)
    before = {name: gain * keep**n for name, gain in standing.gains.items()}
    for expert, own in zip(adapter.adaptation.experts, lost, strict=True):
        if expert.name != IDENTITY:
            before[expert.name] = before.get(expert.name, 0.0) + float(ages @ (lost[0] - own))
    return Standing(before, standing.rows + n)


def weigh(names: Sequence[str], standing: Standing, policy: AdaptPolicy, *, waiting: int = 0) -> dict[str, float]:
    """The weight of each of these experts (the identity among them); they sum to 1.

    `waiting` rows were answered since those that the experts are fitted to and scored on.
    """
    trust = max(0.5 ** (waiting / policy.stale_rows), LEAST_TRUST)
    residual = [name for name in names if name.startswith("residual")]
    learners = policy.residual_prior if residual else 0.0
    each = (1 - policy.identity_prior - learners) / max(1, len(names) - 1 - len(residual))
    priors = dict.fromkeys(names, each) | dict.fromkeys(residual, learners / max(1, len(residual)))
    priors = {name: trust * prior for name, prior in priors.items()}
    priors[IDENTITY] = 1 - trust * (1 - policy.identity_prior)
    rate = trust * policy.rate
    exponents = {name: math.log(prior) + rate * standing.gains.get(name, 0.0) for name, prior in priors.items()}
    top = max(exponents.values())
    raised = {name: math.exp(exponent - top) for name, exponent in exponents.items()}
    total = sum(raised.values())
    return {name: value / total for name, value in raised.items()}


def make(
    rows: Answered, task: Task, standing: Standing, policy: AdaptPolicy, *, version: int, seed: int, waiting: int = 0
) -> Made | None:
    """The adaptation for what this champion answers next; None when there are fewer than `policy.min_rows` rows.

    `waiting` rows were answered after these, and have no label yet.
    """
    if len(rows.truth) < policy.min_rows:
        return None
    v = link(rows.raw, task)
    width, columns = v.shape[1], rows.x.shape[1]
    scale = error_scale(rows) if task == "regression" else 1.0
    experts = [Expert(IDENTITY, 0, (0.0,), 1.0)]
    for window in policy.windows:
        part, truth = v[-window:], rows.truth[-window:]
        used = min(window, len(truth))
        experts.append(Expert(f"shift-{window}", used, *_recalibrated(part, truth, task, scale, sloped=False)))
        experts.append(Expert(f"scale-{window}", used, *_recalibrated(part, truth, task, scale, sloped=True)))
    learners: list[tuple[str, int, Any]] = []
    for window in policy.residual_windows:
        if len(rows.truth) < max(policy.residual_min_rows, window // 4):
            continue  # it would learn by heart
        newest = rows.newest(window)
        learner = _residual(newest, task, width, window, seed)
        if learner is not None:
            learners.append((f"residual-{window}", len(newest.truth), learner))
    base = 1.0 if task == "regression" else 0.0  # a regression's residual is added to the output
    for place, (name, used, _) in enumerate(learners):
        experts.append(Expert(name, used, (0.0,), base, (place,)))
    if len(learners) > 1:
        everyone = tuple(range(len(learners)))
        experts.append(Expert("residuals", max(used for _, used, _ in learners), (0.0,), base, everyone))
    weights = weigh([e.name for e in experts], standing, policy, waiting=waiting)
    heavy = {name for name, weight in weights.items() if weight >= policy.min_weight} | {IDENTITY}
    total = sum(weights[name] for name in heavy)
    whole = Adaptation(
        version=version,
        task=task,
        width=width,
        columns=columns,
        experts=tuple(experts),
        weights=tuple(weights[e.name] / total if e.name in heavy else 0.0 for e in experts),
        bound=policy.max_move * {"binary": 1.0, "multiclass": 0.5, "regression": math.sqrt(scale / 2)}[task],
        graph=graph([learner for *_, learner in learners], width, width + columns) if learners else b"",
    )
    return Made(_lean(whole, [learner for *_, learner in learners]), whole)


def _lean(whole: Adaptation, learners: Sequence[Trees]) -> Adaptation:
    """The same answers from less: without the experts that have no weight, and all trees added up in one ensemble.

    Of several classes each learner's output is normalised before it is added, so the learners stay apart.
    """
    kept = [(expert, weight) for expert, weight in zip(whole.experts, whole.weights, strict=True) if weight]
    used = sorted({place for expert, _ in kept for place in expert.learners})
    if whole.task == "multiclass" or not used:
        kept = [(msgspec.structs.replace(e, learners=tuple(map(used.index, e.learners))), w) for e, w in kept]
        ensembles = [learners[place] for place in used]
    else:
        shares = dict.fromkeys(used, 0.0)
        for expert, weight in kept:
            for place in expert.learners:
                shares[place] += weight / len(expert.learners)
        rows = max(expert.rows for expert, _ in kept if expert.learners)
        kept = [(msgspec.structs.replace(expert, learners=()), weight) for expert, weight in kept]
        kept.append((Expert(MIXTURE, rows, (0.0,), 0.0, (0,)), 1.0))
        ensembles = [_added_up([(learners[place], share) for place, share in shares.items()])]
    return msgspec.structs.replace(
        whole,
        experts=tuple(expert for expert, _ in kept),
        weights=tuple(weight for _, weight in kept),
        graph=graph(ensembles, whole.width, whole.width + whole.columns) if ensembles else b"",
    )


def _added_up(parts: Sequence[tuple[Trees, float]]) -> Trees:
    """One ensemble that says the sum of these, each times its share."""
    trees = []
    for ensemble, share in parts:
        for output, nodes in ensemble.trees:
            scaled = nodes.copy()
            scaled["value"] *= share
            trees.append((output, scaled))
    base = np.sum([np.multiply(ensemble.base, share) for ensemble, share in parts], axis=0)
    return Trees(tuple(base.tolist()), tuple(trees))


def tempered(rows: Answered, task: Task) -> Answered:
    """The same, where no value lies further from the champion's output than `FURTHEST` usual errors.

    A squared error knows no bounds: one label with a wrong unit would move every output, and the bound with them.
    """
    if task != "regression" or not len(rows.truth):
        return rows
    raw = np.asarray(rows.raw, np.float64).reshape(-1)
    most = FURTHEST * float(np.quantile(np.abs(rows.truth - raw), 0.95))
    return rows._replace(truth=np.clip(rows.truth, raw - most, raw + most))


def error_scale(rows: Answered) -> float:
    """Twice the champion's mean squared error on these rows: the unit of a regression's loss; never 0."""
    with np.errstate(over="ignore"):
        errors = (np.asarray(rows.raw, np.float64).reshape(-1) - rows.truth) ** 2
    return float(max(2 * np.mean(errors), 1e-12 * (1 + float(np.mean(np.square(rows.truth))))))


# -- recalibrations ------------------------------------------------------------------------------------------------

RIDGE: Final = 5.0
"""Pseudo-observations that hold the slope at 1; a fifth of them hold the intercept at 0."""


def _recalibrated(
    v: Array, truth: npt.NDArray[Any], task: Task, scale: float, *, sloped: bool
) -> tuple[tuple[float, ...], float]:
    """(intercept or one for each class, slope) of the penalised best line through the link scale."""
    if task == "regression":
        return _least_squares(v[:, 0], truth, scale, sloped=sloped)
    if task == "binary":
        return _logistic(v[:, 0], truth, sloped=sloped)
    return _softmax(v, truth, sloped=sloped)


def _least_squares(v: Array, truth: Array, scale: float, *, sloped: bool) -> tuple[tuple[float, ...], float]:
    """Ridge in units of the output's own variance, so that it does not depend on the target's unit."""
    spread = float(v.var()) or 1.0
    centre = float(v.mean())
    noise = scale / 2
    residual = truth - v
    intercept_ridge = RIDGE / 5
    if not sloped:
        return (float(residual.sum() / (len(v) + intercept_ridge)),), 1.0
    z = (v - centre) / math.sqrt(spread)
    # residual = a + c z; the penalty on c stands for RIDGE observations of one standard deviation.
    a = residual.sum() / (len(v) + intercept_ridge)
    c = float(z @ (residual - a)) / (float(z @ z) + RIDGE * max(1.0, noise / spread))
    slope = 1 + c / math.sqrt(spread)
    return (float(a - c * centre / math.sqrt(spread)),), float(slope)


def _logistic(v: Array, truth: npt.NDArray[Any], *, sloped: bool) -> tuple[tuple[float, ...], float]:
    """Damped Newton: an undamped one diverges where the classes are nearly separated."""
    y = (truth == 1).astype(np.float64)
    design = np.column_stack([np.ones_like(v), v])
    ridge, target = np.array([RIDGE / 5, RIDGE]), np.array([0.0, 1.0])
    free = np.array([True, sloped])

    def objective(beta: Array) -> float:
        z = design @ beta
        return float(np.logaddexp(0, z).sum() - y @ z + 0.5 * ridge @ (beta - target) ** 2)

    beta = target.copy()
    value = objective(beta)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(design @ beta)))
        gradient = (design.T @ (p - y) + ridge * (beta - target))[free]
        hessian = (design.T * (p * (1 - p))) @ design + np.diag(ridge)
        step = np.zeros(2)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient)
        size = 1.0
        while size > 1e-6 and objective(beta - size * step) > value:
            size /= 2
        beta = beta - size * step
        improved, value = value, objective(beta)
        if improved - value < 1e-9 * (1 + abs(value)):
            break
    return (float(beta[0]),), float(beta[1])


def _softmax(v: Array, truth: npt.NDArray[Any], *, sloped: bool) -> tuple[tuple[float, ...], float]:
    """A shift for each class and one temperature (slope = 1 / temperature)."""
    from scipy.optimize import minimize

    classes = v.shape[1]
    told = np.eye(classes)[truth]

    def objective(beta: Array) -> tuple[float, Array]:
        slope = beta[-1] if sloped else 1.0
        z = slope * v + beta[:classes]
        total = log_sum(z)
        wrong = np.exp(z - total) - told
        value = float((total[:, 0] - (z * told).sum(axis=1)).sum())
        gradient = np.append(wrong.sum(axis=0), (wrong * v).sum() if sloped else 0.0)
        held = beta - np.append(np.zeros(classes), 1.0)
        ridge = np.append(np.full(classes, RIDGE / 5), RIDGE)
        return value + 0.5 * float(ridge @ held**2), gradient + ridge * held

    found = minimize(objective, np.append(np.zeros(classes), 1.0), jac=True, method="L-BFGS-B").x
    return tuple(float(a) for a in found[:classes]), float(found[-1]) if sloped else 1.0


# -- residual learners ---------------------------------------------------------------------------------------------


class Trees(NamedTuple):
    """A fitted tree ensemble: `base` for each output, and (output, nodes) for each tree, nodes as scikit-learn's."""

    base: tuple[float, ...]
    trees: tuple[tuple[int, npt.NDArray[Any]], ...]


def _residual(rows: Answered, task: Task, width: int, window: int, seed: int) -> Trees | None:
    """Histogram gradient boosting on (v, x); None when these rows have too few classes or would need too many trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    v = link(rows.raw, task)
    given = np.concatenate([v, rows.x], axis=1, dtype=np.float32)
    empty = np.isnan(given).all(axis=0)
    given = np.where(empty, np.float32(0), given)  # scikit-learn cannot bin a column without any value
    large = window >= 8_000
    settings: dict[str, Any] = {
        "max_iter": 60 if large else 30,
        "max_leaf_nodes": 16 if large else 8,
        "learning_rate": 0.1 if large else 0.08,
        "early_stopping": False,
        "random_state": seed,
    }
    if task == "regression":
        model = HistGradientBoostingRegressor(**settings).fit(given, rows.truth - v[:, 0])
        outputs = [0]
    else:
        outputs = [0] if width == 1 else [int(k) for k in np.unique(rows.truth)]
        if width > 1 and not 2 < len(outputs) <= MAX_TREES // settings["max_iter"]:
            return None  # of two classes scikit-learn makes one output, not two
        if len(np.unique(rows.truth)) < 2:
            return None
        model = HistGradientBoostingClassifier(**settings).fit(given, rows.truth)
    baseline = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1)
    base = np.full(width, math.log(0.5 / len(rows.truth)))  # of a class that these rows do not have
    base[outputs] = baseline
    trees = [
        (outputs[at], predictor.nodes) for iteration in model._predictors for at, predictor in enumerate(iteration)
    ]
    return Trees(tuple(base.tolist()), tuple(trees))


def graph(ensembles: Sequence[Trees], width: int, columns: int) -> bytes:
    """The ONNX model of these ensembles side by side: float32 `input` n by `columns` to n by width x ensembles.

    One tree operator: what it costs an answer is one call.
    """
    from onnx import TensorProto, helper

    parts: defaultdict[str, list[Any]] = defaultdict(list)
    tree = 0
    for place, ensemble in enumerate(ensembles):
        for output, nodes in ensemble.trees:
            leaf = nodes["is_leaf"].astype(bool)
            count = len(nodes)
            threshold = rounded_down(nodes["num_threshold"])
            parts["nodes_treeids"] += [tree] * count
            parts["nodes_nodeids"] += range(count)
            parts["nodes_featureids"] += np.where(leaf, 0, nodes["feature_idx"]).tolist()
            parts["nodes_modes"] += np.where(leaf, "LEAF", "BRANCH_LEQ").tolist()
            parts["nodes_values"] += np.where(leaf, 0, threshold).tolist()
            parts["nodes_truenodeids"] += np.where(leaf, 0, nodes["left"]).tolist()
            parts["nodes_falsenodeids"] += np.where(leaf, 0, nodes["right"]).tolist()
            parts["nodes_missing_value_tracks_true"] += np.where(leaf, 0, nodes["missing_go_to_left"]).tolist()
            leaves = np.flatnonzero(leaf).tolist()
            parts["target_treeids"] += [tree] * len(leaves)
            parts["target_nodeids"] += leaves
            parts["target_ids"] += [place * width + output] * len(leaves)
            parts["target_weights"] += nodes["value"][leaf].tolist()
            tree += 1
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["input"],
        ["output"],
        domain="ai.onnx.ml",
        n_targets=width * len(ensembles),
        base_values=[value for ensemble in ensembles for value in ensemble.base],
        aggregate_function="SUM",
        post_transform="NONE",
        **parts,
    )
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, columns])
    found = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, width * len(ensembles)])
    model = helper.make_model(
        helper.make_graph([node], "adaptation", [given], [found]),
        opset_imports=[helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)],
        ir_version=9,
    )
    return bytes(model.SerializeToString())
