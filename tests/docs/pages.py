"""The blocks of the documents: what a reader would type, what is printed then, and the files that a page shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", ROOT / "client" / "README.md", *sorted(DOCS.rglob("*.md")))

_FENCE: Final = re.compile(r"^(`{3,})(\w*)[ \t]*(.*)$")
_OPTION: Final = re.compile(r'([\w-]+)="([^"]*)"')
_FIRST: Final = re.compile(r"<!-- run first\n(.*?)-->", re.DOTALL)
_HERE: Final = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True, slots=True)
class Step:
    """One command and the answer that the page shows to it."""

    command: str
    answer: str
    """ "" when the page shows none."""
    line: int
    stopped: bool = False
    """Whether the page stops it with Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    options: dict[str, str]
    text: str
    steps: tuple[Step, ...] = field(default=())

    @property
    def not_run(self) -> str | None:
        """Why a console block is not run; None when it is."""
        return self.options.get("no-run")


def run_first(page: Path) -> list[Step]:
    """Commands that stand in the page's comment `run first`: how a reader who begins here comes to where it begins."""
    found = _FIRST.search(page.read_text())
    lines = [line for line in found[1].splitlines() if line] if found else []
    return [Step(line, "", 0, lines[at + 1 : at + 2] == ["^C"]) for at, line in enumerate(lines) if line != "^C"]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in their order. Raises ValueError for one that never ends."""
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opened = _FENCE.match(lines[at])
        if not opened:
            at += 1
            continue
        end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == opened[1]), None)
        if end is None:
            raise ValueError(f"{page}:{at + 1}: the block has no end")
        inside = lines[at + 1 : end]
        steps = tuple(_steps(inside, at + 2)) if opened[2] == "console" else ()
        yield Block(at + 1, opened[2], dict(_OPTION.findall(opened[3])), "\n".join(inside) + "\n", steps)
        at = end + 1


def _steps(lines: list[str], first: int) -> Iterator[Step]:
    at = 0
    while at < len(lines):
        if not lines[at].startswith("$ "):
            at += 1
            continue
        start, command = at, lines[at][2:]
        at += 1
        while at < len(lines) and not _whole(command):
            command += "\n" + lines[at]
            at += 1
        begun = at
        while at < len(lines) and not lines[at].startswith("$ "):
            at += 1
        answer = "\n".join(lines[begun:at]).rstrip()
        stopped = answer.endswith("^C")
        yield Step(command, answer.removesuffix("^C").rstrip(), first + start, stopped)


def _whole(command: str) -> bool:
    """Whether a shell would begin with it: no quote is open, no line goes on, no text after `<<` is missing."""
    here = _HERE.search(command)
    if here:
        return bool(re.search(rf"^{here[2]}$", command, re.MULTILINE))
    if command.endswith("\\"):
        return False
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True
