"""A deployment made from the installed wheel, Debian's Chromium, and pages that are watched.

Run by `make test-browser`, which builds and installs the wheel; `make test` does not collect this folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.browser.installed import Installed
from tests.browser.story import Story, live_through

PATIENCE_MS = 30_000
WIDE, PHONE = 1280, 360


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evergreen", help="path of the command `evergreen` of the installed wheel")
    parser.addoption("--minutes", type=float, default=2.0, help="how long the page is left open with traffic")
    parser.addoption("--pictures", type=Path, help="folder that keeps the pictures (default: pytest's temporary one)")


class Watched:
    """A browser session; what it complains of and whom it asks is kept."""

    def __init__(self, context: BrowserContext, server: Installed, pictures: Path) -> None:
        self.context, self.server, self.pictures = context, server, pictures
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        context.set_default_timeout(PATIENCE_MS)
        own = re.escape(server.url)
        context.route(re.compile(f"^(?!{own}/|data:|blob:|about:)"), lambda route: route.abort())
        context.on("request", self._asked)
        context.on("console", lambda message: self._said(message.type, message.text))
        context.on("weberror", lambda error: self.errors.append(f"uncaught: {error.error}"))
        self.page = context.new_page()

    def _asked(self, request: object) -> None:
        url: str = request.url  # type: ignore[attr-defined]
        if not url.startswith((f"{self.server.url}/", "data:", "blob:", "about:")):
            self.elsewhere.append(url)

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(f"{kind}: {text}")

    def sign_in(self, token: str, where: str = "") -> Page:
        """The page at `where` (`#/runs/1`), signed in, with every panel read."""
        self.page.goto(f"{self.server.url}/{where}")
        self.page.fill("#token", token)
        self.page.keyboard.press("Enter")
        return self.settled()

    def settled(self) -> Page:
        self.page.wait_for_selector("dialog", state="detached")
        self.page.wait_for_selector('#live[data-state="live"]')
        self.page.wait_for_function(
            "() => document.querySelector('main .panel') && !document.querySelector('.loading')"
        )
        return self.page

    def go(self, where: str) -> Page:
        """The view at `where`, with everything read."""
        self.page.evaluate("where => { location.hash = where }", where)
        self.page.wait_for_selector("#panel-story h1" if re.match("#/(runs|versions)/", where) else "h1.sentence")
        return self.settled()

    def shoot(self, name: str, panel: str = "", height: int = 1500) -> None:
        """Keeps what the page looks like as `NAME.png` among the pictures: from its top, or with this panel in view."""
        page, before = self.page, self.page.viewport_size
        assert before is not None
        page.set_viewport_size({"width": before["width"], "height": height})
        page.mouse.move(0, 0)
        if panel:
            page.evaluate("id => document.getElementById(id).scrollIntoView()", f"panel-{panel}")
        else:
            page.evaluate("() => scrollTo(0, 0)")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.screenshot(path=self.pictures / f"{name}.png", animations="disabled")
        page.set_viewport_size(before)

    def close(self) -> None:
        self.context.close()

    def check(self) -> None:
        assert self.errors == []
        assert self.elsewhere == []


Open = Callable[..., Watched]


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    command = request.config.getoption("--evergreen")
    if command is None:
        pytest.fail("these tests need the installed wheel: run them with `make test-browser`")
    evergreen = Path(command).absolute()
    served = Installed(evergreen, tmp_path_factory.mktemp("home"))
    code = "import service.web; print(service.web.__file__)"
    where = subprocess.check_output(
        [evergreen.parent / "python", "-c", code], cwd=served.home, env=served.env, text=True
    )
    assert Path(where).is_relative_to(evergreen.parent.parent), f"{where} is not of the wheel"
    try:
        yield served.start().wait_ready(600)
    finally:
        served.end()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("there is no chromium on PATH: `make test-browser` installs Debian's")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the page are kept: the folder of `--pictures`, or one that pytest removes."""
    kept: Path | None = request.config.getoption("--pictures")
    if kept is None:
        return tmp_path_factory.mktemp("pictures")
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def opener(server: Installed, browser: Browser, pictures: Path) -> tuple[Open, list[Watched]]:
    opened: list[Watched] = []

    def new(*, width: int = WIDE, height: int = 900, dark: bool = False) -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            locale="en-GB",
            timezone_id="UTC",
            device_scale_factor=1,
        )
        opened.append(Watched(context, server, pictures))
        return opened[-1]

    return new, opened


@pytest.fixture
def window(server: Installed, browser: Browser, pictures: Path) -> Iterator[Open]:
    """Opens browser sessions; at the end of the test none of them may have complained or asked another host."""
    new, opened = opener(server, browser, pictures)
    yield new
    for one in opened:
        one.close()
    for one in opened:
        one.check()


@pytest.fixture(scope="session")
def first(server: Installed, browser: Browser, pictures: Path) -> Iterator[Watched]:
    """The session of whoever opened the page before the first request."""
    watched = opener(server, browser, pictures)[0]()
    watched.sign_in(server.token)
    watched.shoot("empty")
    yield watched
    watched.close()


@pytest.fixture(scope="session")
def story(server: Installed, first: Watched, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What happened; from here on there are two versions, and traffic goes on."""
    return live_through(server, first.page, first.shoot, tmp_path_factory.mktemp("pushed"))
