"""Does the site load anything from elsewhere? Names each place that does, and exits with 1:  outside.py SITE"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"' >]+)"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?((?:https?:)?//[^\"' >]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)|@import\s+[\"']((?:https?:)?//[^\"']+)",
    re.IGNORECASE,
)


def loaded(site: Path) -> list[str]:
    """`page: address` of all that pages and style sheets load from another host."""
    found = []
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for match in LOADED.finditer(file.read_text()):
            found.append(f"{file.relative_to(site)}: {next(filter(None, match.groups()))}")
    return found


if __name__ == "__main__":
    site = Path(sys.argv[1])
    places = loaded(site)
    print("\n".join(places) or f"{site}: {len([*site.rglob('*.html')])} pages, and nothing is loaded from elsewhere")
    sys.exit(bool(places))
