"""The site of the documents: words lead to the glossary, nothing is loaded from elsewhere, every page has its place."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.docs.hooks import linked, terms
from deploy.docs.outside import loaded
from tests.deploy.manifests import DEPLOY

DOCS = DEPLOY.parent / "docs"


def test_the_first_use_of_a_word_leads_to_the_glossary_and_no_other() -> None:
    page = "# The spool\n\nThe spool, `spool` and a spool.\n\n```text\nlease\n```\n\nA run; they run. [a](x.md) Leases."

    done = linked(page, "reference/http.md", ["spool", "lease", "run"])

    assert done.splitlines()[2] == "The [spool](../glossary.md#spool), `spool` and a spool."
    assert done.splitlines()[-1] == ("A [run](../glossary.md#run); they run. [a](x.md) [Leases](../glossary.md#lease).")
    assert done.splitlines()[5] == "lease" and done.startswith("# The spool\n")


def test_the_glossary_has_what_newcomers_ask_for_and_every_word_is_used() -> None:
    words = terms((DOCS / "glossary.md").read_text())
    others = [page.read_text().lower() for page in DOCS.glob("*.md") if page.name != "glossary.md"]

    assert {"record", "spool", "drain", "holdout", "champion", "alias", "adaptation", "gate", "lease"} <= {*words}
    assert [word for word in words if not any(word in text for text in others)] == []


def test_what_a_page_loads_from_elsewhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="https://x.org">x</a><script src="b.js"></script>')
    assert loaded(tmp_path) == []

    (tmp_path / "b.html").write_text(
        '<script src="//x.org/b.js"></script><link rel=stylesheet href=https://y.org/c.css>'
    )
    (tmp_path / "c.css").write_text("a{background:url(https://z.org/i.png)}")
    assert loaded(tmp_path) == ["b.html: //x.org/b.js", "b.html: https://y.org/c.css", "c.css: https://z.org/i.png"]


def test_every_page_has_a_place_in_the_site() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.MULTILINE))

    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_what_builds_the_site_is_locked_apart() -> None:
    lock, tested = ((DEPLOY / name).read_text() for name in ("requirements.docs.lock", "requirements.lock"))

    assert "mkdocs-material==" in lock and "mkdocs" not in tested and "://" not in lock and "--index" not in lock
    pins = re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:]
    assert len(pins) > 20 and all("--hash=sha256:" in pin for pin in pins)
