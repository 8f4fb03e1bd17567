from __future__ import annotations

from typing import Any

from tests.docs.counted import DONE, NOT_RUN


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many commands and answers of the documents were run and compared, and what was not, and why."""
    write = terminalreporter.write_line
    write("")
    write(f"documents: {DONE['run']} commands run, {DONE['answers']} answers compared, {len(NOT_RUN)} not run")
    for line in NOT_RUN:
        write(f"  not run: {line}")
