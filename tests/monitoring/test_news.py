from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from monitoring.drift import OUTPUT, DriftPolicy, DriftReport, FeatureDrift
from monitoring.news import Labels, sentence, told

POLICY = DriftPolicy()


def measured(name: str, times: float, score: float | None = None, past: float = 0.0, **more: object) -> FeatureDrift:
    causes = ("distribution",) if times >= 1 else ()
    score = times * 0.1 if score is None else score
    drift = FeatureDrift(name, "wasserstein", score, 0.1, times >= 1, causes=causes, past=past, times=times)
    return drift if not more else FeatureDrift(**{**{f: getattr(drift, f) for f in drift.__struct_fields__}, **more})  # type: ignore[arg-type]


def report(*features: FeatureDrift, output: float = 2.0, at: float = 0.0) -> DriftReport:
    """A check whose window of 1,000 rows, one a second, ends at `at`; no times for 0."""
    middle = at - 500 if at else 0.0
    return DriftReport(
        features, measured(OUTPUT, 0.0, output * 0.1), 0.0, False, (), 5_000, 1_000, middle_at=middle, until_at=at
    )


def states(series: Sequence[float], every: float = 500) -> list[str | None]:
    """What is said of one feature in consecutive checks, `every` seconds apart."""
    before, said = None, list[str | None]()
    for number, times in enumerate(series):
        before = told(report(measured("age", times), at=10_000 + number * every), before, POLICY)
        said.append(next((finding.state for finding in before.findings if finding.name == "age"), None))
    return said


def test_nothing_moved_is_nothing_to_say() -> None:
    quiet = told(report(measured("age", 0.4)), None, POLICY)
    assert (quiet.findings, quiet.news, quiet.matters) == ((), False, False)
    assert sentence(quiet) == "no drift: 0 of 1 features moved beyond what their own past shows"


def test_a_movement_is_news_once_when_it_is_confirmed_and_over_when_it_is_well_inside() -> None:
    assert states([0.5, 1.4, 1.5, 1.4, 0.9, 1.1, 0.8, 0.7, 0.6]) == [
        None, "suspected", "began", "continues", "continues", "continues", "continues", "over", "remembered",
    ]  # fmt: skip


def test_one_odd_window_is_no_news_unless_it_is_far_beyond() -> None:
    assert states([1.4, 0.5, 1.4, 0.5]) == ["suspected", None, "suspected", None]
    assert states([3.0, 3.2]) == ["began", "continues"]


def test_windows_of_mostly_the_same_rows_are_one_look() -> None:
    assert states([1.4] * 12, every=60) == ["suspected"] * 9 + ["began", "continues", "continues"]


def test_a_return_as_far_as_before_is_no_news_and_one_that_goes_much_further_is() -> None:
    assert states([1.5, 1.5, 0.5, 1.5, 1.6, 0.5]) == ["suspected", "began", "over", *["remembered"] * 3]
    assert states([1.5, 1.5, 0.5, 2.4, 2.4]) == ["suspected", "began", "over", "suspected", "began"]


def test_a_standing_movement_that_jumps_is_news_again() -> None:
    assert states([1.5, 1.5, 2.0, 6.5, 6.6]) == ["suspected", "began", "continues", "began", "continues"]


def test_a_skipped_check_forgets_nothing_and_says_nothing() -> None:
    skipped = DriftReport((), None, 0.0, False, (), 5_000, 10, skipped="the window has 10 rows")
    begun = told(report(measured("age", 4.0)), None, POLICY)
    between = told(skipped, begun, POLICY)
    after = told(report(measured("age", 4.0)), between, POLICY)
    assert (begun.news, between.news, after.news) == (True, False, False)
    assert [f.state for f in (*between.findings, *after.findings)] == ["continues", "continues"]
    assert sentence(between) == "drift was not computed: the window has 10 rows"


def test_uncounted_features_are_no_news() -> None:
    assert told(report(measured("month", 9.0, counted=False)), None, POLICY).findings == ()


@pytest.mark.parametrize(
    ("share", "output", "matters", "words"),
    [
        (0.23, 2.0, True, "age moved (4.0 times what its own past shows), matters: 23% of the model's importance"),
        (0.01, 2.0, False, "(4.0 times what its own past shows), does not matter: 1% of the model's importance"),
        (0.23, 0.5, False, "does not matter: 23% of the model's importance, and its output did not move"),
        (None, 2.0, None, "may matter: the model's importance is not known"),
    ],
)  # fmt: skip
def test_a_movement_matters_when_the_model_leans_on_it_and_its_output_moved(
    share: float | None, output: float, matters: bool | None, words: str
) -> None:
    importance = None if share is None else {"age": share, "income": 1 - share}
    (found,) = told(report(measured("age", 4.0, past=0.1), output=output), None, POLICY, importance=importance).findings
    assert (found.matters, found.importance) == (matters, share)
    assert found.sentence.endswith(words)


def test_labels_from_after_it_began_know_better_and_earlier_ones_know_nothing() -> None:
    share = {"age": 0.4}
    begun = told(report(measured("age", 4.0), at=10_000), None, POLICY, importance=share, labels=Labels(True, 9_000.0))
    later = report(measured("age", 4.0), at=12_000)
    held = told(later, begun, POLICY, importance=share, labels=Labels(held=True, middle_at=11_000.0))
    lost = told(later, begun, POLICY, importance=share, labels=Labels(held=False, middle_at=11_000.0))
    assert (begun.news, begun.findings[0].matters) == (True, None)
    assert begun.findings[0].sentence.endswith(
        "may matter: 40% of the model's importance, and the labels since do not tell yet"
    )
    assert (held.news, held.matters) == (False, False)
    assert sentence(held) == "moved since earlier checks: age (none of it matters)"
    assert (lost.news, lost.findings[0].matters) == (False, True)
    assert lost.findings[0].sentence.endswith("matters: quality was lost on the labels since")


def test_the_output_s_own_movement_matters_and_missing_values_are_said_as_such() -> None:
    output = measured(OUTPUT, 4.0)
    holed = measured("age", 3.5, causes=("missing",), missing_reference=0.02, missing_current=0.6)
    moved = told(DriftReport((holed,), output, 0.0, False, (), 5_000, 1_000), None, POLICY)
    assert [finding.sentence for finding in moved.findings] == [
        "age lacks values in 60% of the rows, 2% before, may matter: the model's importance is not known",
        "prediction moved (4.0 times what chance gives), matters: the model's answers are others",
    ]


def test_findings_come_back_from_a_stored_report() -> None:
    begun = told(report(measured("age", 4.0), at=10_000), None, POLICY, importance={"age": 0.4})
    assert DriftReport.from_json(begun.to_json()) == begun


def test_noise_around_the_edge_is_told_a_few_times_not_at_each_check() -> None:
    rng = np.random.default_rng(0)
    said = states([max(0.0, x) for x in rng.normal(1.0, 0.3, 200)])
    assert 1 <= said.count("began") <= 3
