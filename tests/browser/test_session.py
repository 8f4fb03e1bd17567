"""A page that people leave open does not grow, once it is as full as it gets."""

from __future__ import annotations

import sqlite3
import statistics
import time
from contextlib import closing

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Open
from tests.browser.installed import Installed
from tests.browser.story import CALM_UNTIL, LATER_UNTIL, Story

RATE = 40
WARM_UP_S = 20.0
TURNS = 60
LOOK_EVERY_S = 5.0
A_MINUTE = 12
"""Looks."""
AT_MOST = 0.10
"""Issue 10: the page's heap is flat within ±10 %."""
SERVER_AT_MOST_MB = 20.0
FILLED = 700
"""More than a series of the page has points."""


def fill(server: Installed) -> None:
    """The store as after a longer life: so many checks and adaptations before the first, copies of what was made."""
    with closing(sqlite3.connect(server.home / "var" / "evergreen.db", timeout=30)) as store, store:
        made = store.execute("select id, at from checks order by id").fetchall()
        apart = (made[-1][1] - made[0][1]) / max(1, len(made) - 1)
        adapted = store.execute(
            "select version, number from adaptations where kind = 'made' order by at desc"
        ).fetchone()
        for back in range(1, FILLED + 1):
            store.execute(
                "insert into adaptations (version, number, at, kind, who, why, record) "
                "select version, ?, ?, kind, who, why, record from adaptations where version = ? and number = ?",
                (-back, made[0][1] - back * apart, *adapted),
            )
            store.execute(
                "insert into checks (id, at, version, drift, quality, decision) "
                "select ?, ?, version, drift, quality, decision from checks where id = ?",
                (made[0][0] - back, made[0][1] - back * apart, made[-back % len(made)][0]),
            )


def look_around(page: Page) -> None:
    """Draw every chart so often that the browser has compiled what draws it: that is no growth of the page."""
    for turn in range(TURNS):
        page.evaluate("where => { location.hash = where }", "#/" if turn % 2 else "#/?span=1h")
        page.wait_for_timeout(WARM_UP_S * 1000 / TURNS)


def test_an_open_page_with_traffic_does_not_grow(
    server: Installed, story: Story, window: Open, request: pytest.FixtureRequest
) -> None:
    fill(server)
    watched = window()
    page = watched.sign_in(server.token)
    line = watched.context.new_cdp_session(page)

    def heap() -> float:
        for _ in range(2):
            line.send("HeapProfiler.collectGarbage")
        return float(line.send("Runtime.getHeapUsage")["usedSize"]) / 1e6

    def memory() -> float:
        """MB of all processes of the server."""
        return sum(one.memory_full_info().uss for one in server.children()) / 1e6

    seconds = 60 * request.config.getoption("--minutes")
    rows = int(RATE * (WARM_UP_S + 2 * seconds))
    server.traffic(
        *("--from", str(LATER_UNTIL), "--until", str(LATER_UNTIL + rows), "--rate", str(RATE), "--label-delay", "1"),
        *("--scenario", "abrupt", "--drift-at", str(CALM_UNTIL)),
    )
    look_around(page)
    until = time.monotonic() + seconds
    heaps, sizes = [heap()], [memory()]
    while time.monotonic() < until:
        page.wait_for_timeout(LOOK_EVERY_S * 1000)
        heaps.append(heap())
        sizes.append(memory())

    looks = min(A_MINUTE, len(sizes) // 2)  # a check needs 40 MB and gives them back: no single look says anything
    (first, last), (before, after) = (
        (statistics.median(seen[:looks]), statistics.median(seen[-looks:])) for seen in (heaps, sizes)
    )
    print(f"heap {first:.2f} -> {last:.2f} MB ({min(heaps):.2f} to {max(heaps):.2f})")
    print(f"server {before:.1f} -> {after:.1f} MB ({min(sizes):.1f} to {max(sizes):.1f})")
    assert abs(last / first - 1) <= AT_MOST
    assert after - before <= SERVER_AT_MOST_MB
