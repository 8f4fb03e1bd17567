"""Who cannot see, cannot point, has a small screen or may only read: the page is theirs too."""

from __future__ import annotations

import itertools
import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.browser.conftest import PHONE, WIDE, Open
from tests.browser.installed import Installed
from tests.browser.story import Story
from tests.real_server import wait_until

FOCUS = """
() => {
  const one = document.activeElement;
  const style = getComputedStyle(one);
  const box = one.getBoundingClientRect();
  return {
    name: one.dataset.key ?? one.id ?? "",
    tag: one.tagName,
    drawn: one.matches(":focus-visible") && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1,
    inside: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight,
  };
}
"""


def serious(page: Page) -> list[str]:
    """What axe-core finds of the two gravest kinds."""
    page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true })")
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("where", "width", "dark"),
    [
        ("#/", WIDE, False),
        ("#/", WIDE, True),
        ("#/", PHONE, False),
        ("#/runs/RUN", WIDE, True),
        ("#/runs/RUN", PHONE, False),
        ("#/versions/1/2", WIDE, False),
        ("#/versions/1/2", PHONE, True),
    ],
)
def test_axe_finds_nothing_serious_and_nothing_runs_over(
    server: Installed, story: Story, window: Open, where: str, width: int, dark: bool
) -> None:
    watched = window(width=width, dark=dark)
    page = watched.sign_in(server.token, where.replace("RUN", story.things["promotion"].split()[1]))

    assert serious(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    if where == "#/" and (width == PHONE or dark):
        page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = false })")
        watched.shoot("phone" if width == PHONE else "dark")


def test_axe_finds_nothing_serious_in_the_dialogs(server: Installed, story: Story, window: Open) -> None:
    watched = window()
    page = watched.page
    page.goto(server.url)
    page.wait_for_selector("dialog.sign-in")
    assert serious(page) == []

    watched.sign_in(server.token)
    page.click('button[data-key="promote"]')
    assert serious(page) == []


def test_tab_reaches_every_action_and_the_focus_is_seen(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)
    wanted = set(page.eval_on_selector_all(".actions button:enabled", "all => all.map(one => one.dataset.key)"))
    wanted |= {"theme", "sign-out", "compare", "compare-a", "all"} & set(
        page.eval_on_selector_all("[data-key], [id]", "all => all.map(one => one.dataset.key ?? one.id)")
    )
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0) }")

    reached, unseen = [], []
    for _ in range(300):
        page.keyboard.press("Tab")
        now = page.evaluate(FOCUS)
        if now["tag"] == "BODY":
            break
        reached.append(now["name"])
        if not (now["drawn"] and now["inside"]):
            unseen.append(now)

    assert {"retrain", "promote", "rollback", "loop", "adaptation"} <= wanted
    assert wanted <= set(reached)
    assert any(name.startswith("run-") for name in reached)
    assert unseen == []


def test_enter_opens_a_run_and_escape_closes_a_dialog(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)
    link = page.locator(".decision.is-promotion a.decision-text").first
    name = link.get_attribute("data-key")
    assert name is not None
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-story h1")
    assert page.url.endswith(f"#/runs/{name.removeprefix('run-')}")

    page.go_back()
    page.wait_for_selector("#panel-actions button")
    page.focus('button[data-key="retrain"]')
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] textarea:focus")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("() => document.activeElement.dataset.key") == "retrain"
    assert all(run["trigger"] != "manual" for run in server.get("/manage/runs?kind=retrain")["runs"])


def test_the_loop_is_paused_and_resumed_with_a_keyboard_alone(server: Installed, story: Story, window: Open) -> None:
    page = window().sign_in(server.token)

    for reason, paused in (("the bank closes", True), ("it is open again", False)):
        page.focus('button[data-key="loop"]')
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] textarea:focus")
        page.keyboard.type(reason)
        for _ in itertools.repeat(None, 2):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog", state="detached")
        page.wait_for_selector(".attention .is-pause", state="attached" if paused else "detached")
        wait_until("the pause", lambda paused=paused: bool(server.get("/manage/status")["paused"]) == paused)
        page.wait_for_selector(f'button[data-key="loop"]:text("{"Resume" if paused else "Pause"}")')
    assert [run["why"] for run in server.get("/manage/runs?kind=pause")["runs"]] == ["the bank closes"]


def test_a_token_that_reads_sees_all_and_does_nothing(server: Installed, story: Story, window: Open) -> None:
    token = json.loads(server.run("token", "add", "eyes", "--scope", "read", "--json"))["token"]
    watched = window()
    page = watched.sign_in(token)

    assert "eyes" in page.inner_text("#read-only")
    assert page.locator(".actions button").count() == 5
    assert page.locator(".actions button:enabled").count() == 0
    assert page.locator("main .panel").count() == 10
    assert page.locator("main .panel .trouble:visible").count() == 0
    assert page.locator(".decision").count() > 3
    csrf = watched.context.request.get(f"{server.url}/page/session").json()["csrf"]
    refused = watched.context.request.post(f"{server.url}/manage/pause", headers={"x-evergreen-csrf": csrf}, data={})
    assert refused.status == 403
    assert "operate" in refused.text()
