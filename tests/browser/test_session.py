"""A page that people leave open does not grow."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.browser.conftest import Open
from tests.browser.installed import Installed
from tests.browser.story import CALM_UNTIL, LATER_UNTIL, Story

RATE = 40
WARM_UP_S = 20.0
LOOK_EVERY_S = 5.0
AT_MOST = 0.10
"""Issue 10: the page's heap is flat within ±10 %."""
SERVER_AT_MOST_MB = 20.0


def test_an_open_page_with_traffic_does_not_grow(
    server: Installed, story: Story, window: Open, request: pytest.FixtureRequest
) -> None:
    watched = window()
    page = watched.sign_in(server.token)
    line = watched.context.new_cdp_session(page)

    def heap() -> float:
        for _ in range(2):
            line.send("HeapProfiler.collectGarbage")
        return float(line.send("Runtime.getHeapUsage")["usedSize"]) / 1e6

    def memory() -> float:
        return sum(worker.memory_full_info().uss for worker in server.children("PredictionService")) / 1e6

    seconds = 60 * request.config.getoption("--minutes")
    rows = int(RATE * (WARM_UP_S + 2 * seconds))
    server.traffic(
        *("--from", str(LATER_UNTIL), "--until", str(LATER_UNTIL + rows), "--rate", str(RATE), "--label-delay", "1"),
        *("--scenario", "abrupt", "--drift-at", str(CALM_UNTIL)),
    )
    page.wait_for_timeout(WARM_UP_S * 1000)
    until = time.monotonic() + seconds
    began, sizes = memory(), [heap()]
    while time.monotonic() < until:
        page.wait_for_timeout(LOOK_EVERY_S * 1000)
        sizes.append(heap())
    grown = memory() - began

    quarter = max(1, len(sizes) // 4)
    first, last = statistics.median(sizes[:quarter]), statistics.median(sizes[-quarter:])
    print(f"heap {first:.2f} -> {last:.2f} MB ({min(sizes):.2f} to {max(sizes):.2f}), server {grown:+.1f} MB")
    assert abs(last / first - 1) <= AT_MOST
    assert grown <= SERVER_AT_MOST_MB
