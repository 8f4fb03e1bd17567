"""Every command of README and docs is run as printed, in an empty folder for each page, and answers what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.counted import DONE, NOT_RUN
from tests.docs.pages import PAGES, ROOT, blocks, run_first
from tests.docs.reading import Reader
from tests.docs.shapes import difference, same

WITH_COMMANDS = [page for page in PAGES if any(block.steps for block in blocks(page))]


def test_there_are_commands_to_run() -> None:
    assert len(WITH_COMMANDS) > 8


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_what_happens(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    name = page.relative_to(ROOT)
    with Reader(folder) as reader:
        for step in run_first(page):
            status, printed = reader.run(step)
            assert status == 0, f"{name}, run first: `{step.command}` ended with {status}:\n{printed}"
        for block in blocks(page):
            if "title" in block.options:
                reader.write(block.options["title"], block.text)
            if block.not_run is not None:
                NOT_RUN.extend(f"{name}:{step.line} `{step.command}`: {block.not_run}" for step in block.steps)
                continue
            for at, step in enumerate(block.steps):
                status, printed = reader.run(step)
                DONE["run"] += 1
                asked = [after.command for after in block.steps[at + 1 : at + 2]] == ["echo $?"]
                assert status == 0 or asked, f"{name}:{step.line} `{step.command}` ended with {status}:\n{printed}"
                if step.answer:
                    DONE["answers"] += 1
                    assert same(step.answer, printed), (
                        f"{name}:{step.line} `{step.command}`:\n{difference(step.answer, printed)}"
                    )
