"""What of a dashboard Grafana's published schema does not know, one path a line:  lost_in_grafana.py DASHBOARD.json

Run in an environment that has `grafana-foundation-sdk`, whose classes Grafana makes from its schemas. They read the
file and write it again: what is not there any more, or is another value, is no part of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any


def lost(given: Any, back: Any, path: str = "") -> Iterator[str]:
    """Where `back` has not what `given` has."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            if key in back:
                yield from lost(value, back[key], f"{path}.{key}")
            elif value is not None:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for at, pair in enumerate(zip(given, back, strict=True)):
            yield from lost(*pair, f"{path}[{at}]")
    elif given != back:
        yield path


def main(file: str) -> None:
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    with open(file) as opened:
        given = json.load(opened)
    read = Dashboard.from_json(given)
    print(*lost(given, json.loads(JSONEncoder().encode(read))), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
