"""Writes `evergreen_client/client.py` from `async_client.py`: the same without `async` and `await`.

    python client/unasync.py

The two classes have the same methods and no logic is written twice. A test holds the file equal to what this writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parent / "evergreen_client"
SOURCE: Final = PACKAGE / "async_client.py"
TARGET: Final = PACKAGE / "client.py"

HEAD: Final = '"""`Client`: predictions, labels and the management of a running Evergreen.\n\n'
HEAD_END: Final = 'Made from `async_client.py` by `python client/unasync.py`: edit that one.\n"""'

WORDS: Final = (
    (r"^import asyncio\n", ""),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncClient\b", "Client"),
    (r"\baclose\b", "close"),
    (r"\bfiles\.answered\b", "files.answered_in_threads"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
)


def synchronous(source: str) -> str:
    """The source of the synchronous client. Raises ValueError when something asynchronous is left in it."""
    _, _, code = source.removeprefix('"""').partition('"""')
    for pattern, word in WORDS:
        code = re.sub(pattern, word, code, flags=re.MULTILINE)
    if left := re.search(r".*\b(?:async|await|asyncio)\b.*", code):
        raise ValueError(f"something asynchronous is left: {left[0].strip()}")
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"]
    done = subprocess.run(command, input=HEAD + HEAD_END + code, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    TARGET.write_text(synchronous(SOURCE.read_text()))
