"""What happens is seen within two seconds of being in the store, by a page that stays open."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Watched
from tests.browser.story import Story

AT_MOST_S = 2.0
"""Issue 10's bound."""


@pytest.mark.parametrize("what", ["drift", "training", "promotion", "version", "refusal"])
def test_it_is_seen_within_two_seconds_of_being_in_the_store(story: Story, what: str) -> None:
    name = story.things[what]

    late = story.shown[name] - story.stored[name]
    print(f"{what} ({name}): seen {late:+.2f} s after the store had it")
    assert late <= AT_MOST_S


def test_what_the_page_saw_is_what_happened(story: Story) -> None:
    ends = {what: story.things[what].split()[-1] for what in ("training", "promotion", "refusal")}

    assert ends == {"training": "running", "promotion": "promotion", "refusal": "refusal"}
    refused = story.runs[int(story.things["refusal"].split()[1])]
    assert (refused["kind"], refused["why"]) == ("push", "to see a refusal")


def test_the_open_page_never_complained_and_asked_no_other_host(story: Story, first: Watched) -> None:
    first.check()
