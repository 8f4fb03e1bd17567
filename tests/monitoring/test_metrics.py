"""Counters that do not turn back, files that do not pile up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from monitoring.metrics import HotCounter, HotHistogram, Metrics, exposition, total

ROOT = Path(__file__).parents[2]

KILLED = """
import os, signal, sys
from pathlib import Path
from monitoring.metrics import HotCounter, Metrics
metrics = Metrics(Path(sys.argv[1]), sys.argv[2])
counter = HotCounter(metrics.predictions.labels("1"))
for _ in range(int(sys.argv[3])):
    counter.inc()
metrics.scheduler_leader.set(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def lives_and_is_killed(folder: Path, slot: str, count: int) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(folder), slot, str(count)], cwd=ROOT, check=False)


def lines(folder: Path) -> set[str]:
    return set(exposition(folder).decode().splitlines())


def test_a_replaced_process_counts_on_where_the_killed_one_was(tmp_path: Path) -> None:
    for count in (5, 7):
        lives_and_is_killed(tmp_path, "api-1", count)
    lives_and_is_killed(tmp_path, "api-2", 100)

    assert 'evergreen_predictions_total{version="1"} 112.0' in lines(tmp_path)
    slots = {path.name.rsplit("_", 1)[1] for path in tmp_path.iterdir()}
    assert slots == {"api-1.db", "api-2.db"}


def test_a_replaced_process_removes_the_gauges_of_the_one_before(tmp_path: Path) -> None:
    lives_and_is_killed(tmp_path, "controller-1", 1)
    before = "evergreen_scheduler_leader 1.0" in lines(tmp_path)

    metrics = Metrics(tmp_path, "controller-1")
    metrics.close()

    assert before
    assert "evergreen_scheduler_leader 1.0" not in lines(tmp_path)


def test_the_fast_counter_and_histogram_write_what_the_plain_ones_would(tmp_path: Path) -> None:
    durations = (0.0, 0.0005, 0.00051, 0.3, 99.0)
    plain = Metrics(tmp_path / "plain", "api-1")
    for seconds in durations:
        plain.requests.labels("/predict", "200").inc(2)
        plain.prediction_seconds.observe(seconds)
    plain.close()

    fast = Metrics(tmp_path / "fast", "api-1")
    counter, histogram = HotCounter(fast.requests.labels("/predict", "200")), HotHistogram(fast.prediction_seconds)
    for seconds in durations:
        counter.inc(2)
        histogram.observe(seconds)
    fast.close()

    assert lines(tmp_path / "plain") == lines(tmp_path / "fast")


def test_a_slot_with_an_underscore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="underscore"):
        Metrics(tmp_path, "api_1")


def test_the_files_have_their_room_on_disk_before_anything_is_counted(tmp_path: Path) -> None:
    Metrics(tmp_path, "api-1").close()

    files = [path.stat() for path in tmp_path.iterdir()]
    assert files
    assert all(file.st_blocks * 512 >= file.st_size > 0 for file in files)


def test_the_total_of_a_counter_is_that_of_all_processes(tmp_path: Path) -> None:
    for slot, count in (("api-1", 3), ("api-2", 4)):
        lives_and_is_killed(tmp_path, slot, count)

    assert total(tmp_path, "evergreen_predictions_total", {"version": "1"}) == 7
    assert total(tmp_path, "evergreen_predictions_total", {"version": "2"}) == 0
