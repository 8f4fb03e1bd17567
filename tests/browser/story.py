"""What the deployment of these tests lives through: steady, the world changes, a training, a promotion, a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import skops.io

from tests.artefacts import sample_schema
from tests.browser.seen import Store, seen, watch
from training.pipeline import build

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.installed import Installed

CALM_UNTIL = 7_500
"""Row of the sample up to which nothing moves; it begins after the 4,000 that the first version was trained on."""
LATER_UNTIL = 120_000
PATIENCE_S = 600.0
"""For what takes seconds on a machine that has nothing else to do."""


@dataclass
class Story:
    stored: dict[str, float] = field(default_factory=dict)
    """Thing -> when the store had it, seconds since 1970."""
    shown: dict[str, float] = field(default_factory=dict)
    """Thing -> when the page had it."""
    things: dict[str, str] = field(default_factory=dict)
    """drift | training | promotion | version | refusal -> the thing's name."""
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)


def bad_model(folder: Path) -> Path:
    """A pipeline that learnt the sample's rows with the labels of other rows."""
    schema, features, labels = sample_schema(rows=800, seed=3)
    pipeline = build(schema, {"max_iter": 5}, 0).fit(features, np.random.default_rng(0).permutation(labels))
    path = folder / "bad.skops"
    skops.io.dump(pipeline, path)
    return path


def live_through(server: Installed, page: Page, shoot: Callable[..., None], folder: Path) -> Story:
    """`page` is signed in on the overview of a fresh deployment, and sees it all."""
    story = Story()
    watch(page)
    store = Store(server.home / "var" / "evergreen.db")
    store.start()

    def happens(what: str, name: Callable[[], str | None], seconds: float = PATIENCE_S) -> str:
        """Waits until `name` says what it is called, then until the page shows it."""
        for _ in range(int(seconds * 10)):
            assert store.trouble is None, store.trouble
            if (found := name()) is not None:
                break
            page.wait_for_timeout(100)
        else:
            raise AssertionError(f"no {what} within {seconds:.0f} s: {list(store.runs.values())[-5:]}")
        story.things[what] = found
        page.wait_for_function("name => window.seen[name]", arg=found, timeout=60_000)
        return found

    try:
        calm = server.traffic("--until", str(CALM_UNTIL), "--rate", "200", "--label-delay", "1")
        page.wait_for_function(
            "() => new Set([...document.querySelectorAll('.cell')].map(one => one.dataset.column)).size >= 4",
            timeout=PATIENCE_S * 1000,
        )
        shoot("steady")
        calm.wait(timeout=PATIENCE_S)
        server.traffic(
            *("--from", str(CALM_UNTIL), "--until", str(LATER_UNTIL), "--rate", "160", "--label-delay", "1"),
            *("--scenario", "abrupt", "--drift-at", str(CALM_UNTIL)),
        )
        before = frozenset(store.found)
        happens("drift", lambda: store.newest("news", before))
        page.click("#panel-drift .cell:text('●') >> nth=-1")
        page.wait_for_selector(".drift-detail svg")
        shoot("in-drift", "drift")
        page.keyboard.press("Escape")
        happens("training", lambda: training(store))
        happens("promotion", lambda: store.newest("promotion", before))
        happens("version", lambda: store.newest("version", before))
        checks = page.evaluate("() => Object.keys(window.seen).filter(one => one.startsWith('check')).length")
        page.wait_for_function(
            "old => Object.keys(window.seen).filter(one => one.startsWith('check')).length >= old + 3",
            arg=checks,
            timeout=PATIENCE_S * 1000,
        )
        shoot("after-promotion")
        before = frozenset(store.found)
        server.run("push", str(bad_model(folder)), "--why", "to see a refusal", "--token", server.token)
        happens("refusal", lambda: store.newest("refusal", before))
    finally:
        store.close()
    story.stored, story.shown, story.runs = store.found, seen(page), store.runs
    return story


def training(store: Store) -> str | None:
    """The first retraining that was seen at work."""
    for number, run in sorted(store.runs.items()):
        if run["kind"] == "retrain" and f"run {number} running" in store.found:
            return f"run {number} running"
    return None
