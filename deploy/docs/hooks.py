"""Hooks of MkDocs: the first use of each word of the glossary on a page leads there; `no-run` is for the tests alone.

Only running text is looked at: no code, no headings, no links, no comments, and not the glossary itself. Words that are
plain English as well (to *run*, to *check*, at *home*) count as ours behind an article: a run, the store, each home.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

GLOSSARY: Final = "glossary.md"
PLAIN: Final = frozenset({"drain", "home", "label", "record", "reference", "run", "store", "version", "window"})
"""Headings of the glossary that are plain English as well."""

_PROTECTED: Final = re.compile(
    r"^(`{3,}).*?^\1\s*$"  # a block of code
    r"|<!--.*?-->|`[^`\n]*`|^#+ [^\n]*$|!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\)|<[^>\n]+>",
    re.DOTALL | re.MULTILINE,
)


def terms(glossary: str) -> list[str]:
    """The words of the glossary, the longest first."""
    return sorted(re.findall(r"^### (.+)$", glossary, re.MULTILINE), key=len, reverse=True)


def linked(text: str, page: str, words: list[str]) -> str:
    """The page's Markdown, where the first use of each of `words` is a link to its place in the glossary."""
    if page == GLOSSARY:
        return text
    to = posixpath.relpath(GLOSSARY, posixpath.dirname(page) or ".")
    parts, at = [], 0
    for kept in _PROTECTED.finditer(text):
        parts += [(text[at : kept.start()], True), (kept.group(), False)]
        at = kept.end()
    parts.append((text[at:], True))
    for word in words:
        article = (
            r"(?<=\bthe )|(?<=\ba )|(?<=\bits )|(?<=\beach )|(?<=\bevery )|(?<=\bone )" if word in PLAIN else r"\b"
        )
        pattern = re.compile(rf"(?:{article})({re.escape(word)}s?)\b", re.IGNORECASE)
        for number, (part, free) in enumerate(parts):
            found = pattern.search(part) if free else None
            if found:
                link = f"[{found[1]}]({to}#{word.replace(' ', '-')})"
                parts[number : number + 1] = [(part[: found.start()], True), (link, False), (part[found.end() :], True)]
                break
    return "".join(part for part, _ in parts)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """What MkDocs calls for each page."""
    words = terms((Path(config["docs_dir"]) / GLOSSARY).read_text())
    markdown = re.sub(r'^(```console) no-run="[^"]*"$', r"\1", markdown, flags=re.MULTILINE)
    return linked(markdown, page.file.src_uri, words)
