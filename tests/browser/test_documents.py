"""The documents' site, opened from disk by a browser that reaches nothing else: pages, pictures and the search."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.real_server import ROOT


@pytest.fixture(scope="module")
def site() -> Path:
    subprocess.run(["make", "docs"], cwd=ROOT, check=True)
    return ROOT / "build" / "docs" / "site"


def test_a_word_is_found_without_a_network(browser: Browser, site: Path) -> None:
    context = browser.new_context(offline=True)
    page, asked, wrong = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))

    page.goto((site / "index.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type("holdout", delay=30)
    page.wait_for_selector(".md-search-result__item h1")

    assert "Glossary" in [one.inner_text() for one in page.query_selector_all(".md-search-result__item h1")]
    assert page.evaluate("() => [...document.images].every(one => one.naturalWidth > 0)")
    assert asked and [url for url in asked if not url.startswith("file:")] == []
    assert wrong == []
    context.close()
