"""All benchmarks, one after the other: `python -m benchmarks [--quick]`; JSON files and tables in `--out`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import hostile, interference, kills, outage, record, serving, swap_under_load, workers


def main() -> int:
    """1 when any of them found a failed request or a wrong answer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="minutes instead of half an hour; wider spread")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks"), metavar="FOLDER")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "evergreen-peers", metavar="FOLDER")
    given = parser.parse_args()
    out, quick = given.out, given.quick
    steps: dict[str, Callable[[Callable[[str], None]], int]] = {
        "serving": lambda say: serving.run(
            cache=given.cache,
            seconds=1.0 if quick else 2.5,
            repeats=2 if quick else 3,
            json_to=out / "serving.json",
            say=say,
        ),
        "swap_under_load": lambda say: swap_under_load.run(
            swaps=10 if quick else 50,
            adaptations=20 if quick else 200,
            requests=20_000 if quick else 200_000,
            json_to=out / "swap_under_load.json",
            say=say,
        ),
        "interference": lambda say: interference.run(
            seconds=5.0 if quick else 10.0,
            repeats=2 if quick else 4,
            json_to=out / "interference.json",
            say=say,
        ),
        "workers": lambda say: workers.run(repeats=2 if quick else 4, json_to=out / "workers.json", say=say),
        "record": lambda say: record.run(
            rows=[10_000, 100_000] if quick else [10_000, 100_000, 1_000_000],
            repeats=1 if quick else 3,
            json_to=out / "record.json",
            say=say,
        ),
        "outage": lambda say: outage.run(seconds=15.0 if quick else 60.0, json_to=out / "outage.json", say=say),
        "kills": lambda say: kills.run(kills=3 if quick else 20, json_to=out / "kills.json", say=say),
        "hostile": lambda say: hostile.run(scale=0.1 if quick else 1.0, json_to=out / "hostile.json", say=say),
    }
    failed = []
    out.mkdir(parents=True, exist_ok=True)
    for name, step in steps.items():
        print(f"# {name}", flush=True)
        lines: list[str] = []

        def say(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            print(line, flush=True)

        if step(say):
            failed.append(name)
        blank = lines.index("") if "" in lines else 0
        (out / f"{name}.md").write_text("\n".join(lines[blank + 1 :]) + "\n")
    print(f"\nresults are in {out}" + (f"; failures in {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
