"""Every panel shows what the API says, and the API of the page what `/manage` says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page

from monitoring.wording import metric_name
from tests.browser.conftest import Open
from tests.browser.installed import Installed
from tests.browser.story import Story


def texts(page: Page, selector: str) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(selector).all_inner_texts()]


def figures(page: Page, panel: str) -> dict[str, str]:
    """Key figures of a panel: name -> value and note."""
    found = {}
    for text in texts(page, f"#panel-{panel} .figures > div"):
        name = next(name for name in NAMES if text.startswith(name))
        found[name] = text.removeprefix(name).strip()
    return found


NAMES = (
    *("AUC", "log loss", "Quality", "Labels", "Adaptation", "Next", "Rows a second", "Time to answer"),
    *("Errors a second", "Refused a second", "Spool", "Lag", "Dropped", "Unfit", "Not storable"),
)


def agree(page: Page, shown: Callable[[], Any], said: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Waits until the page shows what the API says: it is live, so what is said may be newer for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        before = said()
        seen = shown()
        if seen == before:
            return seen
        assert time.monotonic() < deadline, f"the page shows\n{seen}\nand the API says\n{before}"
        page.wait_for_timeout(100)


def three(value: float) -> str:
    return f"{value:,.3f}"


def test_the_sentence_and_its_figures_are_those_of_the_status(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)

    def said() -> list[str]:
        status = server.get("/manage/status")
        return [status["sentence"].replace("`", ""), str(status["champion"])]

    sentence, version = agree(page, lambda: [texts(page, "h1.sentence")[0], texts(page, ".over b")[0]], said)
    assert f"Version {version} answers since" in sentence

    def quality() -> list[str]:
        state = server.get("/page/state")
        known = state["quality"]
        assert known["value"] is not None, known["why"]
        between = f"{three(known['low'])} to {three(known['high'])}, {known['rows']:,} rows"
        shown = f"{three(known['value'])} {known['state']} {between}; own holdout {three(known['holdout'])}"
        return [metric_name(known["metric"]), shown]

    agree(page, lambda: list(next(iter(figures(page, "now").items()))), quality, 60)


def test_the_decisions_are_the_runs(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)

    def said() -> dict[str, Any]:
        found = server.get("/page/decisions?limit=20")
        runs = {one["id"]: one for one in server.get("/manage/runs?limit=1000")["runs"]}
        for one in found["decisions"]:
            alike = [runs[number] for number in range(one["first"], one["run"] + 1)]
            assert len(alike) == one["count"]
            assert {(run["kind"], run["state"], run["outcome"]) for run in alike} == {
                (one["kind"], one["state"], one["outcome"])
            }
        return {
            "sentences": [" ".join(one["sentence"].replace("`", "").split()) for one in found["decisions"]],
            "runs": [f"run-{one['run']}" for one in found["decisions"]],
            "chips": sum(len(one["chips"]) for one in found["decisions"]),
            "total": f"{len(runs)} runs in the store",
        }

    agree(
        page,
        lambda: {
            "sentences": [  # as they are in the document: the style sheet makes the first letter a capital
                " ".join(text.split()) for text in page.locator("#panel-decisions .decision-text").all_text_contents()
            ],
            "runs": page.eval_on_selector_all("a.decision-text", "all => all.map(one => one.dataset.key)"),
            "chips": page.locator("#panel-decisions .chip").count(),
            "total": texts(page, "#panel-decisions .pager span")[0],
        },
        said,
    )


def test_the_space_bar_hides_the_checks_that_led_to_nothing_and_a_reload_keeps_that(
    server: Installed, story: Story, window: Open
) -> None:
    page = window().sign_in(server.token)

    def agrees(query: str) -> None:
        agree(
            page,
            lambda: page.eval_on_selector_all("a.decision-text", "all => all.map(one => one.dataset.key)"),
            lambda: [f"run-{one['run']}" for one in server.get(f"/page/decisions?limit=20{query}")["decisions"]],
        )

    agrees("")
    page.focus('[data-key="checks"]')
    page.keyboard.press("Space")
    agrees("&checks=0")
    assert page.evaluate("() => document.activeElement.dataset.key") == "checks"
    page.reload()
    agrees("&checks=0")
    page.focus('[data-key="checks"]')
    page.keyboard.press("Space")
    agrees("")


def test_the_drift_strip_is_the_newest_check(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)

    def said() -> list[list[str]]:
        drift = server.get("/page/drift")
        newest = server.get("/manage/drift")["checks"][0]
        assert drift["checks"][-1]["id"] == newest["id"]
        scores = {one["name"]: one["score"] for one in newest["drift"]["features"]}
        features = [one for one in drift["features"] if not one["output"]]
        assert {one["name"]: one["score"] for one in features} == {one["name"]: scores[one["name"]] for one in features}
        return [
            [
                "prediction" if one["output"] else one["name"],
                f"{one['times']:.{2 if one['times'] < 10 else 0}f}",
            ]
            for one in drift["features"][:15]
            if one["score"] is not None
        ]

    def names() -> list[str]:
        return texts(page, "#panel-drift .feature-name")

    def times() -> list[str]:
        return [text.split()[0] for text in texts(page, "#panel-drift tbody td.times")]

    agree(
        page,
        lambda: [list(pair) for pair in zip(names(), times(), strict=True)],
        said,
    )


def test_outputs_and_slices_are_counted_as_the_api_counts(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)

    def slices() -> list[list[str]]:
        return [[f"{one['rows']:,}", three(one["value"])] for one in server.get("/page/segments")["slices"]]

    def shown() -> list[list[str]]:
        rows, values = (texts(page, f"#panel-slices tbody td.n:nth-child({place})") for place in (2, 3))
        return [list(pair) for pair in zip(rows, values, strict=True)]

    agree(page, shown, slices)

    def outputs() -> list[str]:
        found = server.get("/page/distribution")
        rows = [found["scores"]["rows"], found["labels"]["rows"], found["predictions"]["rows"]]
        return [f"{n:,} rows" for n in rows]

    agree(page, lambda: [t.split(" ", 1)[1] for t in texts(page, "#panel-outputs .halves .legend li")], outputs)


def test_record_fleet_and_traffic_are_those_of_the_server(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)

    def record() -> dict[str, str]:
        found = server.get("/page/state")["record"]
        return {
            "Dropped": f"{found['drops']:,} answered and not recorded",
            "Unfit": f"{found['unfit']:,} left out by a reader",
            "Not storable": f"{found['dead_letters']:,} since the server started",
        }

    agree(page, lambda: {k: v for k, v in figures(page, "record").items() if k not in ("Spool", "Lag")}, record)

    def fleet() -> dict[str, Any]:
        status = server.get("/manage/status")
        state = server.get("/page/state")
        workers = [[one["slot"], f"v{one['serving']}"] for one in status["workers"]]
        return {"workers": sorted(workers), "jobs": [one["name"] for one in state["jobs"]]}

    def fleet_shown() -> dict[str, Any]:
        cells = '#panel-fleet [aria-label="Workers"] tbody td:nth-child'
        workers = zip(texts(page, f"{cells}(2)"), texts(page, f"{cells}(3)"), strict=True)
        jobs = texts(page, '#panel-fleet [aria-label="Jobs"] tbody th')
        return {"workers": sorted(list(one) for one in workers), "jobs": jobs}

    assert len(agree(page, fleet_shown, fleet)["workers"]) == 2

    def traffic() -> str:
        totals = server.get("/page/traffic")["totals"]
        assert totals["rows"] > 3_500, "the calm rows alone are more"
        return f"{totals['errors']} errors of"

    agree(page, lambda: figures(page, "traffic")["Errors a second"].split(" ", 1)[1].rsplit(" ", 2)[0], traffic)


def test_a_run_and_two_versions_are_those_of_the_api(server: Installed, story: Story, window: Open) -> None:
    number = int(story.things["promotion"].split()[1])
    told = server.get(f"/manage/runs/{number}")
    watched = window()
    page = watched.sign_in(server.token, f"#/runs/{number}")

    assert texts(page, "h1.sentence")[0].startswith("Version 2 took over")
    gates = told["record"]["verdict"]["gates"]
    assert page.locator("#panel-story svg").count() > 3
    for gate in gates:
        assert gate["reason"].replace("`", "") in page.inner_text("#panel-story")
    watched.shoot("run")

    watched.go("#/versions/1/2")
    sides = server.get("/page/versions/1/2")
    assert [text.split()[0] for text in texts(page, ".side .big")] == [three(sides[s]["value"]) for s in "ab"]
    importance = page.locator("section.part", has_text="Feature importance").locator("tbody th")
    assert importance.all_inner_texts() == [one["feature"] for one in sides["importance"]]
    watched.shoot("versions")
