"""The page's files: nothing from outside, nothing inline, nothing that is missing."""

from __future__ import annotations

import re

import pytest

from service.serving.pages import PAGES, WEB, page

STATIC = WEB / "static"
OURS = sorted(path for path in STATIC.glob("*.js") if not path.name.startswith("uPlot"))
MODULES = {path.name: path.read_text() for path in OURS}
HTML = (STATIC / "page.html").read_text()


def test_every_file_that_the_page_asks_for_is_served() -> None:
    asked = re.findall(r'(?:src|href)="(page/static/[^"]+)"', HTML)

    assert len(asked) >= 5
    for address in asked:
        content_type, body, headers = page(f"/{address}")
        assert body
        assert b"nosniff" in dict(headers)[b"x-content-type-options"]
        assert content_type.startswith(
            {"js": b"text/javascript", "css": b"text/css", "svg": b"image/svg+xml"}[address.rpartition(".")[2]]
        )


@pytest.mark.parametrize("name", MODULES)
def test_every_import_of_a_module_is_a_file_beside_it(name: str) -> None:
    for found in re.findall(r'(?:from|import) "([^"]+)"', MODULES[name]):
        assert found.startswith("./"), f"{name} imports {found}, which is not beside it"
        assert f"/page/static/{found.removeprefix('./')}" in PAGES


def test_every_module_is_reached_from_the_first_one() -> None:
    reached, waiting = {"theme.js"}, ["app.js"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += [one for one in re.findall(r'from "\./([^"]+)"', MODULES.get(name, "")) if one not in reached]

    assert set(MODULES) == reached - {"uPlot.esm.js"}


def test_nothing_is_inline_and_nothing_is_from_another_host() -> None:
    assert not re.search(r"<script(?![^>]* src=)", HTML)
    assert not re.search(r"\s(?:style|on\w+)=", HTML)
    for name, text in [("page.html", HTML), ("page.css", (STATIC / "page.css").read_text()), *MODULES.items()]:
        hosts = set(re.findall(r"https?://([^/\"' )]+)", text))
        assert hosts <= {"www.w3.org"}, f"{name} names {hosts}: only the namespace of SVG may look like an address"


@pytest.mark.parametrize("name", MODULES)
def test_what_the_server_says_is_never_read_as_html(name: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", MODULES[name])


def test_the_plots_come_with_their_licence() -> None:
    assert "MIT" in (STATIC / "uPlot.LICENSE").read_text()
    assert "(v1.6.32)" in (STATIC / "uPlot.esm.js").read_text()[:500]
