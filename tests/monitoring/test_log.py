from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring.log import LogPolicy, PredictionLog
from monitoring.record import FEEDBACK, HEADER_BYTES, Damage, Entry, iter_entries
from monitoring.spool import spool_bytes
from tests.processes import python

NEVER = LogPolicy(fsync="never")


def payloads(directory: Path) -> list[bytes]:
    """The payloads in all segments, in the order written; fails on anything that is no record."""
    found = []
    for path in sorted(directory.glob("*.se*")):
        for one in iter_entries(path.read_bytes(), at_end=True):
            assert isinstance(one, Entry), one
            found.append(bytes(one.parts[0]))
    return found


def payloads_before_torn_ends(directory: Path) -> list[bytes]:
    """The payloads in all segments of killed workers."""
    found = []
    for path in directory.glob("*.se*"):
        for one in iter_entries(path.read_bytes(), at_end=True):
            assert isinstance(one, Entry) or one.torn
            if isinstance(one, Entry):
                found.append(bytes(one.parts[0]))
    return found


def run(program: str, *arguments: object) -> str:
    """What a Python program prints; it must end well."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_appended_can_be_read_while_the_segment_is_open(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, NEVER)

    assert log.append(FEEDBACK, 1.0, 3, b"first")
    assert log.append(FEEDBACK, 1.0, 2, b"second")

    assert payloads(tmp_path) == [b"first", b"second"]
    assert (log.appended_rows, log.dropped_rows) == (5, 0)
    log.close()


def test_an_idle_log_leaves_no_file(tmp_path: Path) -> None:
    PredictionLog(tmp_path / "spool", NEVER).close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_open_segment_is_locked_and_the_closed_one_sealed(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, NEVER)
    log.append(FEEDBACK, 1.0, 1, b"x")
    (segment,) = tmp_path.iterdir()
    assert segment.suffix == ".seg"
    with segment.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    log.close()

    (sealed,) = tmp_path.iterdir()
    assert sealed.name == segment.stem + ".sealed"
    with sealed.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_segment_ends_when_it_is_large(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, LogPolicy(fsync="never", segment_bytes=10 * (HEADER_BYTES + 4)))
    for number in range(35):
        assert log.append(FEEDBACK, 1.0, 1, b"%04d" % number)
    log.close()

    assert len(list(tmp_path.glob("*.sealed"))) == 4
    assert sorted(payloads(tmp_path)) == [b"%04d" % number for number in range(35)]


def test_a_segment_ends_when_it_is_old(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, LogPolicy(fsync="never", segment_seconds=60))
    for at in (0.0, 59.0, 61.0, 62.0, 130.0):
        log.append(FEEDBACK, at, 1, b"x")

    assert len(list(tmp_path.glob("*.sealed"))) == 2
    assert len(list(tmp_path.glob("*.seg"))) == 1
    log.close()


def test_a_full_spool_drops_and_counts_until_it_is_drained(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, LogPolicy(fsync="never", segment_seconds=0.5, max_spool_bytes=1000))
    assert log.append(FEEDBACK, 0.0, 1, b"x" * 2000)

    assert not log.append(FEEDBACK, 2.0, 7, b"y")
    assert (log.full, log.dropped_rows) == (True, 7)

    (sealed,) = tmp_path.iterdir()
    assert sealed.suffix == ".sealed"  # or the drain could never free it
    sealed.unlink()
    assert log.append(FEEDBACK, 4.0, 1, b"z")
    assert (log.full, log.dropped_rows) == (False, 7)
    assert payloads(tmp_path) == [b"z"]
    log.close()


def test_a_batch_too_large_to_count_is_dropped_not_raised(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, NEVER)
    assert not log.append(FEEDBACK, 0.0, 65_536, b"x")
    assert log.dropped_rows == 65_536
    log.close()


@pytest.mark.parametrize("policy", ["always", "interval", "never"])
def test_every_fsync_policy_can_be_synced_over_rotations(tmp_path: Path, policy: str) -> None:
    log = PredictionLog(tmp_path, LogPolicy(fsync=policy, segment_bytes=100, fsync_interval_s=0.001))
    for number in range(300):
        assert log.append(FEEDBACK, 1.0, 1, b"%04d" % number)
        if number % 10 == 0:
            log.sync()
    before = len(os.listdir("/proc/self/fd"))
    log.close()
    assert len(payloads(tmp_path)) == 300
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_spool_that_cannot_be_written_drops_and_recovers(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    log = PredictionLog(directory, NEVER)
    directory.rmdir()
    directory.write_text("a file where the directory should be")

    assert not log.append(FEEDBACK, 0.0, 2, b"lost")
    directory.unlink()
    assert log.append(FEEDBACK, 0.1, 1, b"kept")

    assert log.dropped_rows == 2
    assert payloads(directory) == [b"kept"]
    log.close()


def test_a_segment_deleted_under_the_worker_is_noticed(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, NEVER)
    log.append(FEEDBACK, 0.0, 1, b"lost")
    (segment,) = tmp_path.iterdir()
    segment.unlink()

    assert log.append(FEEDBACK, 2.0, 1, b"kept")

    assert payloads(tmp_path) == [b"kept"]
    log.close()


LIMITED = """
import os, resource, sys
from pathlib import Path
from monitoring.log import LogPolicy, PredictionLog
refuse_truncate, group, limits = sys.argv[2] == "True", int(sys.argv[3]), map(int, sys.argv[4:])
if refuse_truncate:
    def ftruncate(fd, length):
        raise OSError(5, "Input/output error")
    os.ftruncate = ftruncate
for limit in limits:
    log = PredictionLog(Path(sys.argv[1], str(limit)), LogPolicy(fsync="never"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    kept = []
    for first in range(0, 120, group):
        together = range(first, first + group)
        kept += together[: log.append_all(2, 1.0, [(1, (b"%08d" % number,)) for number in together])]
    log.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert log.appended_rows == len(kept) and log.dropped_rows == 120 - len(kept)
    print(*kept)
"""


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("refuse_truncate", [False, True])
def test_each_of_the_first_writes_falling_short_loses_and_glues_nothing(
    tmp_path: Path, refuse_truncate: bool, group: int
) -> None:
    size = HEADER_BYTES + 8
    # The write after the nth falls short, by another length each time.
    limits = [nth * size + (nth * 7) % size for nth in range(1, 51)]

    output = run(LIMITED, tmp_path, refuse_truncate, group, *limits).splitlines()

    for limit, line in zip(limits, output, strict=True):
        kept = line.split()
        if limit >= group * size:  # what did not fit went into the next segment
            assert kept == [str(number) for number in range(120)]
        else:  # no segment holds a group: none of it is kept, or what is whole where it cannot be cut off
            assert bool(kept) == (refuse_truncate and limit >= size)
        found: list[bytes] = []
        for path in sorted((tmp_path / str(limit)).iterdir()):
            ones = list(iter_entries(path.read_bytes(), at_end=True))
            assert all(isinstance(one, Entry) for one in ones) or refuse_truncate
            assert not any(isinstance(one, Damage) and not one.torn for one in ones)
            found += [bytes(one.parts[0]) for one in ones if isinstance(one, Entry)]
        assert sorted(found) == [b"%08d" % int(number) for number in kept]


def test_a_disk_without_room_for_one_row_breeds_no_segments_and_counts_every_row(tmp_path: Path) -> None:
    assert run(LIMITED, tmp_path, False, 1, 20).split() == []
    assert list((tmp_path / "20").iterdir()) == []


APPENDER = r"""
import os, sys  # os.write, because print() may be killed before its newline
from pathlib import Path
from monitoring.log import LogPolicy, PredictionLog
for round_ in range(6):  # forked, so that the imports are paid for once
    if os.fork() == 0:
        os.write(1, b"pid %d\n" % os.getpid())
        log = PredictionLog(Path(sys.argv[1]), LogPolicy(segment_bytes=2000, fsync="never"))
        number = 0
        while True:
            if log.append(2, 1.0, 1, b"%d-%08d" % (round_, number)):
                os.write(1, b"%d\n" % number)
            number += 1
    os.wait()
"""


def test_a_kill_at_any_point_loses_no_acknowledged_row(tmp_path: Path) -> None:
    with python(APPENDER, tmp_path) as process:
        assert process.stdout is not None
        acknowledged: list[int] = []
        for line in process.stdout:
            if line.startswith("pid"):
                pid = int(line.split()[1])
                acknowledged.append(0)
                continue
            acknowledged[-1] += 1
            if acknowledged[-1] == 100 + 37 * len(acknowledged):
                os.kill(pid, signal.SIGKILL)

    assert len(acknowledged) == 6
    found = payloads_before_torn_ends(tmp_path)
    for round_, count in enumerate(acknowledged):
        stored = [one for one in found if one.startswith(b"%d-" % round_)]
        assert len(stored) == len(set(stored))
        assert 0 <= len(stored) - count <= 1  # at most the one in flight


def test_spool_bytes_counts_segments_only(tmp_path: Path) -> None:
    for name, size in (("1.seg", 10), ("2.sealed", 20), ("3.new", 40), ("drain.lock", 80)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert spool_bytes(tmp_path) == 30


def test_an_api_worker_can_import_the_log_without_the_heavy_libraries() -> None:
    loaded = run("import sys, monitoring.log; print(*sys.modules)").split()
    assert not {"pandas", "sklearn", "sqlalchemy", "numpy"} & set(loaded)
