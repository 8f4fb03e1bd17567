"""Which revision of the source this program is: from the file that a release leaves in the package, else from git."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Final

LEFT: Final = Path(__file__).parent / "revision.txt"
"""Written by `deploy/release.sh` and the image's build, into what they build; a checkout has none."""
SHOWN_DIGITS: Final = 12
CHANGED: Final = "-changed"
"""What stands behind a revision when something was built from files that are in no revision."""


@lru_cache(maxsize=1)
def revision() -> str | None:
    """40 hexadecimal digits, perhaps with `CHANGED` behind them; None where neither a release nor git says it."""
    if LEFT.exists():
        return LEFT.read_text().strip() or None
    root = LEFT.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()


def short(found: str) -> str:
    """A revision as people read it."""
    return found.removesuffix(CHANGED)[:SHOWN_DIGITS] + (CHANGED if found.endswith(CHANGED) else "")
