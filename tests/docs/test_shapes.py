"""The rule by which answers are compared tells what matters from what does not."""

from __future__ import annotations

from tests.docs.shapes import difference, same


def test_numbers_ids_moments_and_line_ends_may_differ() -> None:
    assert same("AUC 0.848 ± 0.036 on 1,000 rows", "AUC 0.9 ± 0.1\non 12 rows")
    assert same('{"id":"5c0f9a1b","at":1795477560.78}', '{"id":"0191-aa00-bb","at":3}')
    assert same("gain -0.1301", "gain 0.2")


def test_words_may_not_differ() -> None:
    assert not same("quality held: AUC 0.8", "quality lost: AUC 0.8")
    assert not same("0 failed", "0 failed, 3 wrong")
    assert "-quality held" in difference("quality held", "quality lost")


def test_an_ellipsis_stands_for_anything_in_a_line_and_over_lines() -> None:
    assert same("run 3: … promoted\n…\nversion 2", "run 7: by ana, promoted\na\nb\nversion 9")
    assert not same("run 3: … promoted", "run 7: by ana, refused")
