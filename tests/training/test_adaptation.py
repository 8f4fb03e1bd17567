"""The fast layer: bounded, exact, never code, and worth its weight or silent."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from training.adaptation import IDENTITY, Adaptation, AdaptationError, Adapter, decode, inverse, link, losses
from training.experts import AdaptPolicy, Answered, Made, Standing, make, score, weigh

POLICY = AdaptPolicy()
TASKS = ("binary", "multiclass", "regression")


def answered(task: str, rows: int, seed: int = 0, *, wrong: float = 1.0) -> Answered:
    """A champion whose output is off: too high by `wrong` on the link scale, and blind to the second feature."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3)).astype(np.float32)
    x[random.random(rows) < 0.1, 2] = np.nan
    signal = x[:, 0] * 1.5
    unseen = 2.0 * (x[:, 1] > 0) - 1
    if task == "regression":
        return Answered(
            (10 * signal + wrong).astype(np.float32), x, 10 * signal + 3 * unseen + random.normal(size=rows)
        )
    if task == "binary":
        p = 1 / (1 + np.exp(-(signal + wrong)))
        truth = (random.random(rows) < 1 / (1 + np.exp(-(signal + unseen)))).astype(int)
        return Answered(np.column_stack([1 - p, p]).astype(np.float32), x, truth)
    logits = np.column_stack([signal + wrong, -signal, np.zeros(rows)])
    real = np.column_stack([signal, -signal, 2 * unseen])
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (real + random.gumbel(size=real.shape)).argmax(axis=1)
    return Answered(chances.astype(np.float32), x, truth)


def made(task: str, rows: Answered, standing: Standing | None = None, policy: AdaptPolicy = POLICY) -> Made:
    found = make(rows, task, standing or Standing(), policy, version=3, seed=0)  # type: ignore[arg-type]
    assert found is not None
    return found


def mean_loss(task: str, output: np.ndarray, truth: np.ndarray) -> float:
    return float(losses(link(output, task), truth, task).mean())  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_it_repairs_a_champion_that_is_off_and_says_so_in_weights(task: str) -> None:
    history = answered(task, 4_000)
    standing = Standing()
    for at in range(1_000, 4_000, 500):  # each part is answered by what was made before it
        adapter = Adapter(made(task, Answered(*(part[:at] for part in history)), standing).whole)
        standing = score(standing, adapter, Answered(*(part[at : at + 500] for part in history)), POLICY)
    both = made(task, history, standing)
    final = both.served
    new = answered(task, 2_000, seed=9)
    served = Adapter(final).apply(new.raw, new.x)
    assert mean_loss(task, served, new.truth) < 0.9 * mean_loss(task, new.raw, new.truth)
    heaviest = max(zip(both.whole.weights, both.whole.experts, strict=True), key=lambda pair: pair[0])[1]
    assert heaviest.name.startswith("residual")
    assert standing.rows == 3_000


@pytest.mark.parametrize("task", TASKS)
def test_answers_keep_their_shape_type_and_sum(task: str) -> None:
    rows = answered(task, 1_500)
    served = Adapter(made(task, rows).served).apply(rows.raw, rows.x)
    assert served.shape == rows.raw.shape and served.dtype == rows.raw.dtype
    assert np.isfinite(served).all()
    if task != "regression":
        assert (served >= 0).all() and (served <= 1).all()
        np.testing.assert_allclose(served.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_row_alone_is_answered_as_among_others_and_the_same_after_a_journey(task: str) -> None:
    rows = answered(task, 1_500)
    original = made(task, rows).served
    adapter, travelled = Adapter(original), Adapter(decode(original.encode()))
    together = adapter.apply(rows.raw[:64], rows.x[:64])
    np.testing.assert_array_equal(together, travelled.apply(rows.raw[:64], rows.x[:64]))
    together = adapter.apply(rows.raw, rows.x)
    for size in (1, 3, 31):
        parts = [slice(at, at + size) for at in range(0, 1_500, size)]
        alone = np.concatenate([adapter.apply(rows.raw[part], rows.x[part]) for part in parts])
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_output_that_is_not_finite_does_not_become_finite(task: str, number: float) -> None:
    rows = answered(task, 1_500)
    adapter, raw = Adapter(made(task, rows).served), rows.raw.copy()
    if task == "binary" and np.isinf(number):
        return  # no probability
    raw[1] = number
    together = adapter.apply(raw[:3], rows.x[:3])
    assert not np.isfinite(together[1]).any() and np.isfinite(together[[0, 2]]).all()
    assert not np.isfinite(adapter.apply(raw[1:2], rows.x[1:2])).any()


@pytest.mark.parametrize("task", TASKS)
def test_what_is_served_is_the_weighted_sum_of_what_the_experts_say(task: str) -> None:
    rows = answered(task, 1_500)
    for adaptation in made(task, rows):
        adapter = Adapter(adaptation)
        said = np.tensordot(np.array(adaptation.weights), adapter.outputs(rows.raw, rows.x), axes=1)
        v = link(rows.raw, task)  # type: ignore[arg-type]
        expected = inverse(v + np.clip(said - v, -adaptation.bound, adaptation.bound), task, rows.raw)  # type: ignore[arg-type]
        np.testing.assert_allclose(adapter.apply(rows.raw, rows.x), expected, rtol=1e-5, atol=1e-6)


def test_the_trees_answer_as_scikit_learn_does() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = answered("binary", 1_500)
    whole = made("binary", rows, policy=AdaptPolicy(residual_windows=(1_500,), windows=())).whole
    v = link(rows.raw, "binary")
    given = np.concatenate([v, rows.x], axis=1, dtype=np.float32)
    model = HistGradientBoostingClassifier(
        max_iter=30, max_leaf_nodes=8, learning_rate=0.08, early_stopping=False, random_state=0
    ).fit(given, rows.truth)
    said = Adapter(whole).outputs(rows.raw, rows.x)[-1, :, 0]
    np.testing.assert_allclose(said, model.decision_function(given), atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_shipped_answers_as_the_whole_does(task: str) -> None:
    rows = answered(task, 3_000)
    both = made(task, rows, Standing({"residual-1000": 60.0, "residuals": 40.0, "scale-300": 30.0}))
    whole, served = (Adapter(one).apply(rows.raw, rows.x) for one in (both.whole, both.served))
    np.testing.assert_allclose(served, whole, rtol=1e-5, atol=1e-5)
    if task != "multiclass":
        assert [expert.name for expert in both.served.experts if expert.learners] == ["trees"]


@pytest.mark.parametrize("task", TASKS)
def test_no_output_is_moved_further_than_allowed(task: str) -> None:
    rows = answered(task, 1_500, wrong=4.0)
    adaptation = made(task, rows, policy=AdaptPolicy(max_move=0.1)).served
    served = Adapter(adaptation).apply(rows.raw, rows.x)
    if task == "regression":
        assert np.abs(served - rows.raw).max() <= adaptation.bound * 1.001
    elif task == "binary":
        moved = link(served, "binary") - link(rows.raw, "binary")
        assert np.abs(moved).max() <= 0.1001


def test_where_there_is_nothing_to_gain_the_output_hardly_changes() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(6_000, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-2 * x[:, 0]))
    rows = Answered(np.column_stack([1 - p, p]).astype(np.float32), x, (random.random(6_000) < p).astype(int))
    standing, lost = Standing(), []
    for at in range(1_000, 6_000, 500):
        both = made("binary", Answered(*(part[:at] for part in rows)), standing)
        part = Answered(*(part[at : at + 500] for part in rows))
        served = Adapter(both.served).apply(part.raw, part.x)
        lost.append(mean_loss("binary", served, part.truth) - mean_loss("binary", part.raw, part.truth))
        standing = score(standing, Adapter(both.whole), part, POLICY)
    assert np.mean(lost) < 0.002
    assert weigh(POLICY.names, standing, POLICY)[IDENTITY] > 0.3


def test_an_expert_without_weight_is_not_shipped_and_can_come_back() -> None:
    rows = answered("binary", 4_000)
    bad = Standing({"residual-1000": -1_000.0, "scale-300": 500.0})
    both = made("binary", rows, bad)
    assert "residual-1000" in {e.name for e in both.whole.experts}
    assert "residual-1000" not in {e.name for e in both.served.experts}
    assert len(both.served.graph) < len(both.whole.graph)
    after = score(bad, Adapter(both.whole), rows, POLICY)
    assert after.gains["residual-1000"] > bad.gains["residual-1000"]


def test_what_an_expert_was_worth_fades_and_is_halved_for_a_new_champion() -> None:
    both = made("binary", answered("binary", 500))
    nothing = Answered(*(part[:0] for part in answered("binary", 10)))
    standing = Standing({"shift-300": 8.0}, 100)
    assert score(standing, Adapter(both.whole), nothing, POLICY) == standing
    assert standing.halved() == Standing({"shift-300": 4.0}, 0)


def test_the_more_rows_wait_for_their_labels_the_more_the_unchanged_output_counts() -> None:
    names, standing = POLICY.names, Standing({"residual-8000": 30.0})
    found = [weigh(names, standing, POLICY, waiting=waiting) for waiting in (0, 500, 3_000, 6_000, 10**7)]
    identity = [weights[IDENTITY] for weights in found]
    assert identity == sorted(identity) and identity[3] == identity[4] < 1
    assert found[0] == weigh(names, standing, POLICY)
    assert weigh(names, Standing(), POLICY, waiting=POLICY.stale_rows)[IDENTITY] == pytest.approx(0.6)
    assert all(sum(weights.values()) == pytest.approx(1) for weights in found)
    assert found[4]["residual-8000"] > found[4]["residual-1000"], "what it was worth counts still"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("what", ["few rows", "one class or value", "a column without a value", "no columns", "huge"])
def test_rows_of_any_kind_make_an_adaptation_or_none(task: str, what: str) -> None:
    rows = answered(task, 80 if what == "few rows" else 600)
    if what == "few rows":
        assert make(rows, task, Standing(), POLICY, version=1, seed=0) is None  # type: ignore[arg-type]
        return
    if what == "one class or value":
        rows = rows._replace(truth=np.full_like(rows.truth, 1))
    elif what == "a column without a value":
        rows.x[:, 1] = np.nan
    elif what == "no columns":
        rows = rows._replace(x=rows.x[:, :0])
    elif task == "regression":
        rows = rows._replace(truth=rows.truth * 1e29)
    else:
        rows.x[:, 0] = np.float32(3e38)
    both = made(task, rows)
    decode(both.whole.encode())
    assert np.isfinite(Adapter(both.served).apply(rows.raw, rows.x)).all()


def test_the_same_rows_and_seed_make_the_same_adaptation() -> None:
    rows = answered("multiclass", 1_200)
    assert made("multiclass", rows).served.digest == made("multiclass", rows).served.digest


def test_bytes_that_are_no_adaptation_are_refused_with_the_reason() -> None:
    good = made("binary", answered("binary", 1_000)).served
    with pytest.raises(AdaptationError, match="no adaptation"):
        decode(b"\x80\x04pickle")
    with pytest.raises(AdaptationError, match="format 2, this release reads 1"):
        decode(msgspec.structs.replace(good, format=2).encode())
    with pytest.raises(AdaptationError, match="contradicts itself"):
        decode(msgspec.structs.replace(good, weights=(1.0,)).encode())
    with pytest.raises(AdaptationError, match="contradicts itself"):
        decode(msgspec.structs.replace(good, bound=float("nan")).encode())
    with pytest.raises(AdaptationError, match="cannot load"):
        Adapter(msgspec.structs.replace(good, graph=good.graph[:100]))
    with pytest.raises(AdaptationError, match="other columns"):
        Adapter(msgspec.structs.replace(good, columns=7))


def test_the_worker_needs_no_scikit_learn_to_apply_one() -> None:
    import subprocess
    import sys

    code = (
        "import sys, training.adaptation\n"
        "print([m for m in ('sklearn', 'pandas', 'scipy', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
    assert isinstance(made("binary", answered("binary", 500)).served, Adaptation)
