"""What `benchmarks.hosts` calls wrong, on stories made by hand: it must be able to fail."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.hosts import Attempt, Trouble, reached, unexcused
from benchmarks.witness import Fact, flips, problems


class Story:
    """Facts in the order in which they were written."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.token = 0

    def write(self, source: str, what: str, left_s: float = 5.0, token: int | None = None, **fact: Any) -> None:
        at = 100.0 + len(self.facts)
        self.facts.append(Fact(len(self.facts), at, source, what, fact, token or self.token, left_s))

    def take(self, source: str) -> None:
        self.token += 1
        self.write(source, "leases", token=self.token)
        self.facts[-1].fact["token"] = self.token

    def run(self, source: str, number: int, state: str, outcome: str | None = None, kind: str = "retrain") -> None:
        self.write(source, "runs", id=number, kind=kind, state=state, outcome=outcome)


def test_one_hand_after_another_is_well() -> None:
    story = Story()
    story.take("one")
    story.run("two", 1, "queued")
    story.run("one", 1, "running")
    story.write("one", "aliases", alias="champion", version=2)
    story.take("two")
    story.run("two", 1, "failed", "interrupted")
    story.run("two", 2, "running")
    story.run("two", 2, "done", "promoted")

    assert problems(story.facts) == []
    assert [flip.version for flip in flips(story.facts)] == [2]


def test_a_write_of_another_than_the_holder_is_told() -> None:
    story = Story()
    story.take("one")
    story.take("two")
    story.write("one", "aliases", alias="champion", version=2)
    story.write("two", "aliases", alias="champion", version=3, left_s=-0.5)
    story.write("eye", "versions", version=9)

    assert problems(story.facts, besides="eye") == [
        "write 2 (aliases champion 2): by one, and two holds token 2",
        "write 3 (aliases champion 3): the lease had run out 0.5 s before",
    ]


def test_an_older_token_two_trainings_at_once_and_an_end_by_another_are_told() -> None:
    story = Story()
    story.take("one")
    story.run("one", 1, "running")
    story.run("one", 2, "running", kind="push")
    story.take("two")
    story.run("two", 1, "done", "promoted")
    story.token = 1
    story.run("one", 2, "done", "refused", kind="push")

    told = problems(story.facts)
    assert [line.partition(": ")[2] for line in told] == [
        "run 1 was under way",
        "begun with token 1, ended with 2",
        "token 1 after 2",
    ]


def answered(*versions: tuple[float, int]) -> list[Attempt]:
    return [Attempt(at, at + 0.1, version) for at, version in versions]


def late(attempts: list[Attempt], *troubles: Trouble, here: float = math.inf) -> tuple[bool, float]:
    """(after trouble, seconds) of a change to version 2 at 100 s."""
    fact = Fact(1, 100.0, "one", "aliases", {"alias": "champion", "version": 2}, 1, 5.0)
    (found,) = reached("one", [fact], attempts, list(troubles), {("one", 2): here}, 300.0, 5.0, 10.0)
    return found.after_trouble, round(found.seconds, 1)


def test_a_promotion_counts_from_the_flip_or_from_the_end_of_what_stood_against_it() -> None:
    attempts = answered((99, 1), (101, 1), (112, 2))

    assert late(attempts) == (False, 12.1)
    assert late(attempts, Trouble("one", False, 95.0, 105.0)) == (True, 7.1)
    assert late(attempts, Trouble("one", False, 90.0, 97.0)) == (True, 15.1)
    assert late(attempts, Trouble("one", False, 106.0, 111.0)) == (False, 12.1), "it began too late to matter"
    assert late(attempts, Trouble("one", False, 95.0, 105.0, storage_only=True), here=50.0) == (False, 12.1)
    assert late(answered((99, 1))) == (False, math.inf)


def test_a_failure_is_explained_by_what_was_done_to_who_answers_alone() -> None:
    failed = Attempt(100.0, 100.1, 0, "503")
    attempts = [*answered((90, 1)), failed, *answered((110, 1))]

    assert unexcused(attempts, []) == [failed]
    assert unexcused(attempts, [Trouble("one", False, 95.0, 105.0)]) == [failed], "a cut is no excuse"
    assert unexcused(attempts, [Trouble("one", True, 95.0, 105.0)]) == []
    assert unexcused(attempts, [Trouble("one", True, 80.0, 85.0)]) == [failed], "it had answered again"
