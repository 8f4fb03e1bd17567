"""What every benchmark says of itself: machine, versions, seed, counts, spread; as JSON and as Markdown."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

LIBRARIES: Final = ("bentoml", "scikit-learn", "numpy", "onnxruntime", "msgspec", "uvicorn", "uvloop", "httptools")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repeats. NaN where nothing could be measured."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(known), min(known), max(known), len(known))

    def text(self, unit: str = "") -> str:
        """`3,500 (3,400 to 3,600)`."""
        if not self.repeats:
            return "-"
        if self.repeats == 1:
            return number(self.median) + unit
        return f"{number(self.median)}{unit} ({number(self.low)} to {number(self.high)})"

    def json(self) -> dict[str, float | int | None]:
        values = {"median": self.median, "min": self.low, "max": self.high}
        return {name: None if math.isnan(v) else v for name, v in values.items()} | {"repeats": self.repeats}


def number(value: float) -> str:
    """Three significant digits, thousands with commas."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def machine() -> dict[str, Any]:
    """Where this was measured, and how busy it was."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "load_average_before": round(os.getloadavg()[0], 2),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine_text(found: Mapping[str, Any]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in found["libraries"].items())
    return (
        f"{found['at']}; {found['processor']}, {found['cores']} cores, {found['memory_gb']} GB, {found['system']}, "
        f"load average before {found['load_average_before']}; Python {found['python']}, {libraries}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, default=str) + "\n")
