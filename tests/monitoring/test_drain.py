from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitoring import store
from monitoring.drain import Backlog, Drainer, DrainFailed, SpoolBusy
from monitoring.insert import _by_day
from monitoring.log import LogPolicy, PredictionLog
from monitoring.record import FEEDBACK, HEADER_BYTES, PREDICTION, REJECTION, TableRows
from monitoring.spool import spool_bytes
from service.serving.ids import new_ids
from tests.processes import python

NEVER = LogPolicy(fsync="never")


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    engine = store.open_store(store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def log(spool: Path) -> Iterator[PredictionLog]:
    log = PredictionLog(spool, NEVER)
    yield log
    log.close()


def predict(log: PredictionLog, *ids: str, at: float = 1.0) -> None:
    answer = {"version": 3, "ids": ids, "predictions": [1] * len(ids), "probabilities": [[0.25, 0.75]] * len(ids)}
    asked = {"records": [{"age": 1.5}] * len(ids)}
    assert log.append(PREDICTION, at, len(ids), json.dumps(answer).encode(), json.dumps(asked).encode())


def give_labels(log: PredictionLog, *ids: str, at: float = 1.0) -> None:
    body = {"labels": [{"id": id_, "label": 1} for id_ in ids]}
    assert log.append(FEEDBACK, at, len(ids), json.dumps(body).encode())


def stored(engine: sa.Engine, table: sa.Table = store.predictions) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(table.c.id).order_by(table.c.segment, table.c.position)))


def letters(engine: sa.Engine) -> list[tuple[int, str, bytes]]:
    table = store.dead_letters
    with engine.connect() as connection:
        found = connection.execute(sa.select(table.c.kind, table.c.reason, table.c.payload))
        return [(kind, reason, bytes(payload)) for kind, reason, payload in found]


def the_segment(spool: Path) -> Path:
    (path,) = (path for path in spool.iterdir() if path.suffix in (".seg", ".sealed"))
    return path


# --- from the log into the store -----------------------------------------------------------------------------------


def test_rows_of_an_open_segment_are_stored_once_and_the_segment_stays(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    with Drainer(spool, engine) as drainer:
        predict(log, "a", "b", at=5.0)
        assert drainer.drain(9.0).predictions == 2
        assert drainer.drain(9.0).predictions == 0
        predict(log, "c")
        result = drainer.drain(9.0)

    assert (result.predictions, result.bytes_left, result.oldest_at, result.deleted_segments) == (1, 0, None, 0)
    assert stored(engine) == ["a", "b", "c"]
    assert the_segment(spool).suffix == ".seg"
    with engine.connect() as connection:
        row = connection.execute(sa.select(store.predictions)).first()
    assert row is not None
    assert (row.at, row.version, row.features, row.prediction, row.probabilities) == (
        5.0,
        3,
        '{"age": 1.5}',
        "1",
        "[0.25, 0.75]",
    )
    assert row.day == row.segment // 2**20 // 86_400_000


def test_rows_with_and_without_an_adaptation_go_in_one_batch(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "without")
    answer = {"version": 3, "adaptation": 17, "ids": ["with"], "predictions": [1]}
    assert log.append(PREDICTION, 1.0, 1, json.dumps(answer).encode(), b'{"records": [{}]}')

    with Drainer(spool, engine) as drainer:
        assert drainer.drain(9.0).predictions == 2

    with engine.connect() as connection:
        found = connection.execute(sa.select(store.predictions.c.id, store.predictions.c.adaptation)).all()
    assert {row.id: row.adaptation for row in found} == {"without": None, "with": 17}


def test_after_an_outage_more_segments_are_drained_than_a_process_may_open(engine: sa.Engine, spool: Path) -> None:
    log = PredictionLog(spool, LogPolicy(fsync="never", segment_bytes=1))
    for number in range(300):
        predict(log, str(number))
    log.close()
    engine.connect().close()
    used, most = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)

    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, most[1]))
    try:
        with Drainer(spool, engine) as drainer:
            result = drainer.drain(9.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)

    assert (result.predictions, result.deleted_segments) == (300, 300)
    assert len(os.listdir("/proc/self/fd")) <= used + 2


def test_a_sealed_segment_is_deleted_once_it_is_stored(engine: sa.Engine, spool: Path, log: PredictionLog) -> None:
    with Drainer(spool, engine) as drainer:
        predict(log, "a")
        drainer.drain(9.0)
        predict(log, "b")
        log.close()  # renames it: the remembered offset must still be found
        result = drainer.drain(9.0)

    assert (result.predictions, result.deleted_segments) == (1, 1)
    assert stored(engine) == ["a", "b"]
    assert [path.name for path in spool.iterdir()] == ["drain.lock"]


def test_batches_and_chunks_of_every_size_store_the_same_rows(
    engine: sa.Engine, spool: Path, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.drain._CHUNK_BYTES", 300)  # shorter than the longest record
    expected = []
    for number in range(40):
        ids = [f"{number}-{row}" for row in range(number % 13 + 1)]
        predict(log, *ids)
        expected += ids
    log.close()

    with Drainer(spool, engine, batch_rows=7) as drainer:
        assert drainer.drain(9.0).predictions == len(expected)

    assert stored(engine) == expected


def test_all_kinds_of_records_are_stored(engine: sa.Engine, spool: Path, log: PredictionLog) -> None:
    predict(log, "a")
    give_labels(log, "a", at=8.0)
    rejection = {"route": "/predict", "status": 400, "count": 5, "reason": "records[0].age: missing"}
    assert log.append(REJECTION, 2.0, 5, json.dumps(rejection).encode())

    with Drainer(spool, engine) as drainer:
        result = drainer.drain(9.0)

    assert (result.predictions, result.labels, result.rejections, result.dead) == (1, 1, 1, 0)
    with engine.connect() as connection:
        row = connection.execute(sa.select(store.rejections)).one()
        label = connection.execute(sa.select(store.labels)).one()
    assert (row.route, row.status, row._mapping["count"], row.reason) == ("/predict", 400, 5, "records[0].age: missing")
    assert (label.id, label.label, label.observed_at, label.received_at) == ("a", "1", 8.0, 8.0)


def test_texts_are_stored_as_they_were_sent(engine: sa.Engine, spool: Path, log: PredictionLog) -> None:
    records = [
        '{\t"a":\n"x\\ty\\\\N",\r\n "b": "\\u00e9 é 😀 \\"quoted\\"" }',
        '{"a": "\\\\."}',
        "{}",
    ]
    ids = ["tab\there", "back\\slash", "\\N"]
    answer = {"version": 1, "ids": ids, "predictions": ["\\N", "new\nline", 1.5]}
    asked = '{"records":[' + ",".join(records) + "]}"
    assert log.append(PREDICTION, 1.1, 3, json.dumps(answer).encode(), asked.encode())

    with Drainer(spool, engine) as drainer:
        assert drainer.drain(9.0).predictions == 3

    table = store.predictions
    with engine.connect() as connection:
        found = connection.execute(sa.select(table).order_by(table.c.position)).all()
    assert [row.features for row in found] == records
    assert [row.id for row in found] == ids
    assert [json.loads(row.prediction) for row in found] == answer["predictions"]
    assert [(row.at, row.probabilities) for row in found] == [(1.1, None)] * 3


def test_the_same_id_twice_keeps_both_rows_and_is_counted(engine: sa.Engine, spool: Path, log: PredictionLog) -> None:
    with Drainer(spool, engine) as drainer:
        predict(log, "a", "b")
        assert drainer.drain(9.0).repeated_ids == 0
        predict(log, "a", "c", "c")
        other_worker = PredictionLog(spool, NEVER)
        predict(other_worker, "c", "b", "d")
        assert drainer.drain(9.0).repeated_ids == 4
        other_worker.close()

    assert sorted(stored(engine)) == ["a", "a", "b", "b", "c", "c", "c", "d"]


def test_labels_are_counted_as_matched_or_not_and_all_are_kept(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    with Drainer(spool, engine) as drainer:
        give_labels(log, "early", "now")
        predict(log, "now")
        result = drainer.drain(9.0)
        assert (result.matched_labels, result.unmatched_labels) == (1, 1)
        predict(log, "early")
        give_labels(log, "early", "now", "never")
        result = drainer.drain(9.0)
        assert (result.matched_labels, result.unmatched_labels) == (2, 1)

    assert len(stored(engine, store.labels)) == 5


# --- what is broken ------------------------------------------------------------------------------------------------


def test_a_poison_record_is_kept_with_its_reason_and_blocks_nothing(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "a")
    log.append(PREDICTION, 1.0, 1, b'{"version": 3}', b"{}")
    log.append(77, 1.0, 1, b"from the future")
    predict(log, "b")

    with Drainer(spool, engine) as drainer:
        result = drainer.drain(9.0)

    assert (result.predictions, result.dead) == (2, 2)
    assert stored(engine) == ["a", "b"]
    assert sorted(letters(engine)) == [
        (PREDICTION, "Object missing required field `predictions`", b'{"version": 3}\n{}'),
        (77, "unknown kind of record 77: was it written by a newer program?", b"from the future"),
    ]


def test_a_record_that_only_the_database_refuses_blocks_nothing(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "a")
    answer = {"version": 2**70, "ids": ["huge"], "predictions": [1]}
    log.append(PREDICTION, 1.0, 1, json.dumps(answer).encode(), b'{"records":[{}]}')
    predict(log, "b")
    log.append(FEEDBACK, 1.0, 1, b"poison")

    with Drainer(spool, engine) as drainer:
        result = drainer.drain(9.0)

    assert (result.predictions, result.dead) == (2, 2)
    assert stored(engine) == ["a", "b"]


def test_an_id_with_a_zero_character_loses_no_other_row(engine: sa.Engine, spool: Path, log: PredictionLog) -> None:
    predict(log, "a")
    predict(log, "zero\x00")
    predict(log, "b")

    with Drainer(spool, engine) as drainer:
        result = drainer.drain(9.0)

    assert result.predictions + result.dead == 3  # PostgreSQL has no such text
    assert {"a", "b"} <= set(stored(engine))


def test_damage_in_the_middle_is_kept_and_reading_goes_on_behind_it(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "a")
    first = the_segment(spool).stat().st_size
    predict(log, "b")
    predict(log, "c")
    with the_segment(spool).open("r+b") as file:
        file.seek(first + HEADER_BYTES + 3)
        file.write(b"\x00\xff")

    with Drainer(spool, engine) as drainer:
        assert drainer.drain(9.0).dead == 0  # a short write may just have been cut off and written over
        assert drainer.drain(9.0).dead == 1
        predict(log, "d")
        assert drainer.drain(9.0).predictions == 1

    assert stored(engine) == ["a", "c", "d"]
    ((kind, reason, payload),) = letters(engine)
    assert kind == 0
    assert "are no record" in reason
    assert b'"b"' in payload


def test_a_torn_tail_is_waited_for_while_its_worker_lives_and_counted_afterwards(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "a", at=1.0)
    whole = the_segment(spool).stat().st_size
    predict(log, "b", at=2.0)
    complete = the_segment(spool).read_bytes()
    os.truncate(the_segment(spool), len(complete) - 5)

    with Drainer(spool, engine) as drainer:
        result = drainer.drain(9.0)
        assert (result.predictions, result.torn) == (1, 0)
        assert (result.bytes_left, result.oldest_at) == (len(complete) - 5 - whole, 2.0)
        with the_segment(spool).open("ab") as file:
            file.write(complete[-5:])
        assert drainer.drain(9.0).predictions == 1

        predict(log, "c")
        os.truncate(the_segment(spool), len(complete) + 30)
        log.close()
        result = drainer.drain(9.0)

    assert (result.predictions, result.torn, result.dead, result.deleted_segments) == (0, 1, 0, 1)
    assert stored(engine) == ["a", "b"]


# --- who owns what -------------------------------------------------------------------------------------------------


def test_a_second_drainer_of_the_directory_is_refused_until_the_first_is_closed(engine: sa.Engine, spool: Path) -> None:
    with (
        Drainer(spool, engine),
        pytest.raises(SpoolBusy, match=f"process {os.getpid()} on .* stop that server, or give this one"),
    ):
        Drainer(spool, engine)
    Drainer(spool, engine).close()


def test_the_newborn_segment_of_a_dead_worker_is_cleared_away_and_a_locked_one_left(
    engine: sa.Engine, spool: Path
) -> None:
    import fcntl

    with Drainer(spool, engine) as drainer:
        (spool / "0000000000000001.new").touch()
        with (spool / "0000000000000002.new").open("w") as being_born:
            fcntl.flock(being_born, fcntl.LOCK_EX)
            drainer.drain(9.0)
            assert {path.name for path in spool.iterdir()} == {"drain.lock", "0000000000000002.new"}


WORKER = r"""
import fcntl, json, os, sys  # os.write, because print() may be killed before its newline
from pathlib import Path
from monitoring.log import LogPolicy, PredictionLog
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 4096)  # so that it cannot run far ahead of the test
for worker in range(int(sys.argv[2])):  # forked, so that the imports are paid for once
    if os.fork() == 0:
        os.write(1, b"pid %d\n" % os.getpid())
        log = PredictionLog(Path(sys.argv[1]), LogPolicy(segment_bytes=5000, fsync="never"))
        number = 0
        while True:
            id = f"{worker}-{number}"
            answer = {"version": 3, "ids": [id], "predictions": [1], "probabilities": [[0.5, 0.5]]}
            if log.append(1, 1.0, 1, json.dumps(answer).encode(), b'{"records":[{"age":1}]}'):
                os.write(1, id.encode() + b"\n")
            number += 1
    os.wait()
"""

DRAINER = r"""
import os, sys
from pathlib import Path
import psycopg, sqlalchemy
from monitoring.drain import Drainer
from monitoring.store import connect
for _ in sys.stdin:  # forked, too
    if os.fork() == 0:
        os.write(1, b"pid %d\n" % os.getpid())
        drainer = Drainer(Path(sys.argv[1]), connect(sys.argv[2]), batch_rows=100)
        while True:
            os.write(1, b"%d\n" % drainer.drain(0.0).predictions)
    os.wait()
"""


def test_every_acknowledged_row_of_killed_workers_is_stored_exactly_once_by_killed_drainers(
    engine: sa.Engine, spool: Path, store_url: str
) -> None:
    kills = 4
    acknowledged: list[str] = []
    with python(DRAINER, spool, store_url) as drainers, python(WORKER, spool, kills) as workers:
        assert drainers.stdin is not None and drainers.stdout is not None and workers.stdout is not None
        killed = 0
        for line in workers.stdout:
            if line.startswith("pid"):
                worker, left = int(line.split()[1]), 150 + 61 * killed
                drainers.stdin.write("another\n")
                drainers.stdin.flush()
                report = drainers.stdout.readline()
                while not report.startswith("pid"):  # what the one before had still to say
                    report = drainers.stdout.readline()
                drainer = int(report.split()[1])
                continue
            acknowledged.append(line.strip())
            left -= 1
            if left == 0:
                os.kill(worker, signal.SIGKILL)
                for _ in range(killed):  # killed at another place each time: somewhere behind its nth report
                    drainers.stdout.readline()
                os.kill(drainer, signal.SIGKILL)
                killed += 1

        drainers.stdin.close()
        drainers.stdout.read()

    assert killed == kills
    with Drainer(spool, engine) as last:
        assert last.drain(9.0).bytes_left == 0
    found = stored(engine)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert len(found) - len(acknowledged) <= kills  # at most the request in flight at each kill
    assert [path.name for path in spool.iterdir()] == ["drain.lock"]


STOPPABLE = """
import json, sys
from pathlib import Path
from monitoring.log import LogPolicy, PredictionLog
log = PredictionLog(Path(sys.argv[1]), LogPolicy(fsync="never"))
for id in sys.stdin:
    answer = {"version": 3, "ids": [id.strip()], "predictions": [1]}
    log.append(1, 1.0, 1, json.dumps(answer).encode(), b'{"records":[{"age":1}]}')
    print("kept", flush=True)
"""


def test_a_stopped_worker_keeps_its_segment_and_a_killed_one_gives_it_up(engine: sa.Engine, spool: Path) -> None:
    with Drainer(spool, engine) as drainer, python(STOPPABLE, spool) as worker:
        assert worker.stdin is not None and worker.stdout is not None

        def say(id_: str) -> None:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(id_ + "\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == "kept\n"

        say("before")
        worker.send_signal(signal.SIGSTOP)
        os.waitpid(worker.pid, os.WUNTRACED)
        result = drainer.drain(9.0)
        assert (result.predictions, result.deleted_segments) == (1, 0)

        worker.send_signal(signal.SIGCONT)
        say("after")
        assert drainer.drain(9.0).predictions == 1

        say("last")
        worker.kill()
        worker.wait()
        result = drainer.drain(9.0)

    assert (result.predictions, result.deleted_segments) == (1, 1)
    assert stored(engine) == ["before", "after", "last"]


def test_a_drainer_killed_between_commit_and_delete_stores_nothing_twice(
    engine: sa.Engine, spool: Path, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(log, "a", "b")
    give_labels(log, "a")
    log.append(77, 1.0, 1, b"poison")
    log.close()
    with monkeypatch.context() as patch:
        patch.setattr(Drainer, "_delete", lambda self, finished: None)
        with Drainer(spool, engine) as drainer:
            drainer.drain(9.0)

    with Drainer(spool, engine) as drainer:
        result = drainer.drain(9.0)

    assert (result.predictions, result.labels, result.dead, result.repeated_ids) == (0, 0, 0, 0)
    assert result.deleted_segments == 1
    assert stored(engine) == ["a", "b"]
    assert (len(stored(engine, store.labels)), len(letters(engine))) == (1, 1)


def test_rows_stored_behind_the_drainers_back_are_not_stored_twice(
    engine: sa.Engine, spool: Path, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(log, "a", "b")
    with Drainer(spool, engine) as drainer:
        drainer.drain(9.0)
    predict(log, "c")

    monkeypatch.setattr("monitoring.drain.last_stored", lambda engine, segment: -1)
    with Drainer(spool, engine) as drainer:
        assert drainer.drain(9.0).predictions == 1

    assert stored(engine) == ["a", "b", "c"]


def test_rows_deleted_from_the_store_do_not_come_back_with_the_next_drainer(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "a", "b")
    give_labels(log, "a")
    with Drainer(spool, engine) as drainer:
        drainer.drain(9.0)
    with engine.begin() as connection:  # an erasure or retention on another host, which does not reach this spool
        for table in (store.predictions, store.labels):
            connection.execute(sa.delete(table))
    predict(log, "c")

    with Drainer(spool, engine) as drainer:
        drainer.drain(9.0)
        assert stored(engine) == ["c"]
        log.close()
        drainer.drain(9.0)

    with engine.connect() as connection:
        assert connection.scalars(sa.select(store.drained.c.segment)).all() == []


def test_a_store_of_the_first_release_is_gone_on_with_where_its_rows_end(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    predict(log, "a", "b")
    with Drainer(spool, engine) as drainer:
        drainer.drain(9.0)
    with engine.begin() as connection:
        connection.execute(sa.delete(store.drained))
    predict(log, "c")

    with Drainer(spool, engine) as drainer:
        assert drainer.drain(9.0).predictions == 1

    assert stored(engine) == ["a", "b", "c"]


def test_killed_while_storing_one_by_one_the_rows_before_a_damage_are_not_taken_for_stored(
    engine: sa.Engine, spool: Path, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(log, "a")
    predict(log, "refused")
    predict(log, "b")
    log.close()
    (segment,) = spool.glob("*.sealed")
    segment.write_bytes(segment.read_bytes() + b"no record" + segment.read_bytes())

    class Killed(BaseException):
        pass

    def dying(self: Drainer, rows: TableRows, reached: dict[int, int]) -> bool:
        ids = [row.id for row in rows.predictions]
        if len(ids) > 1:
            return False  # as a database that refuses one of them
        if ids == ["refused"]:
            raise Killed
        return whole(self, rows, reached)

    whole = Drainer._store
    with monkeypatch.context() as patch:
        patch.setattr(Drainer, "_store", dying)
        with pytest.raises(Killed), Drainer(spool, engine) as drainer:
            drainer.drain(9.0)

    with Drainer(spool, engine) as drainer:
        drainer.drain(9.0)

    assert stored(engine) == ["a", "refused", "b"] * 2
    assert len(letters(engine)) == 1


# --- the database fails --------------------------------------------------------------------------------------------


def test_a_database_error_in_the_middle_loses_nothing_and_counts_what_was_committed(
    engine: sa.Engine, spool: Path, log: PredictionLog
) -> None:
    with Drainer(spool, engine, batch_rows=5) as drainer:
        predict(log, "p0")
        drainer.drain(9.0)
        for number in range(1, 10):
            predict(log, f"p{number}", at=float(number))
        give_labels(log, "p0")
        log.close()
        with engine.begin() as connection:
            connection.execute(sa.text("alter table labels rename to elsewhere"))
        with pytest.raises(DrainFailed, match="the spool keeps it"):
            drainer.drain(9.0)
        assert drainer.backlog().oldest_at == 6.0
        assert stored(engine) == [f"p{number}" for number in range(6)]
        assert the_segment(spool).exists()

        with engine.begin() as connection:
            connection.execute(sa.text("alter table elsewhere rename to labels"))
        result = drainer.drain(9.0)

    assert (result.predictions, result.labels, result.deleted_segments) == (9, 1, 1)
    assert stored(engine) == [f"p{number}" for number in range(10)]


def test_a_locked_sqlite_file_stops_the_drain_but_not_the_log(sqlite_url: str, spool: Path, log: PredictionLog) -> None:
    engine = store.open_store(sqlite_url)
    sa.event.listen(engine, "checkout", lambda raw, *_: raw.execute("pragma busy_timeout = 1"))
    other = sqlite3.connect(sa.make_url(sqlite_url).database or "", isolation_level=None)
    with Drainer(spool, engine) as drainer:
        predict(log, "a")
        other.execute("begin immediate")
        with pytest.raises(DrainFailed, match="locked"):
            drainer.drain(9.0)
        predict(log, "b")
        other.execute("rollback")
        assert drainer.drain(9.0).predictions == 2
    other.close()
    engine.dispose()


def test_a_postgresql_that_cuts_every_connection_is_reached_again_by_the_next_drain(
    postgres_url: str, spool: Path, log: PredictionLog
) -> None:
    engine = store.open_store(postgres_url)
    with Drainer(spool, engine) as drainer:
        predict(log, "a")
        drainer.drain(9.0)
        other = store.connect(postgres_url)
        with other.connect() as connection:
            connection.execute(
                sa.text(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid()"
                )
            )
        other.dispose()
        predict(log, "b")
        assert drainer.drain(9.0).predictions == 1
    assert stored(engine) == ["a", "b"]
    engine.dispose()


def test_the_backlog_is_told_without_the_database(tmp_path: Path, spool: Path, log: PredictionLog) -> None:
    unreachable = sa.create_engine(f"sqlite:///{tmp_path}/no/such/folder/x.db", poolclass=sa.NullPool)
    predict(log, "a", at=3.0)
    predict(log, "b", at=4.0)
    with Drainer(spool, unreachable) as drainer:
        with pytest.raises(DrainFailed):
            drainer.drain(9.0)
        backlog = drainer.backlog()
    size = the_segment(spool).stat().st_size
    assert (backlog.spool_bytes, backlog.bytes_left, backlog.oldest_at) == (size, size, 3.0)


def test_the_first_rows_of_a_day_make_its_partition_even_after_retention_dropped_it(
    postgres_url: str, spool: Path, log: PredictionLog
) -> None:
    engine = store.open_store(postgres_url)
    with Drainer(spool, engine) as drainer:
        predict(log, "a")
        drainer.drain(9.0)
        with engine.connect() as connection:
            (day,) = store.stored_days(connection)
        assert store.drop_days(engine, (day + 1) * 86_400.0) == 1
        predict(log, "b")
        result = drainer.drain(9.0)
        with engine.connect() as connection:
            assert store.stored_days(connection) == [day]

    assert (result.predictions, result.dead) == (1, 0)
    assert stored(engine) == ["b"]
    engine.dispose()


def test_a_prediction_id_says_in_which_days_partitions_to_look() -> None:
    today = int(time.time() // 86_400)

    made, own = _by_day([*new_ids(3), "order-7", "x" * 36])

    assert made[0] in (today, today + 1) and len(made[1]) == 3
    assert own == (None, ["order-7", "x" * 36])


def test_labels_of_any_age_find_their_predictions_on_postgresql(
    postgres_url: str, spool: Path, log: PredictionLog
) -> None:
    engine = store.open_store(postgres_url)
    (own,) = new_ids(1)
    predict(log, own, "order-7")
    with Drainer(spool, engine) as drainer:
        drainer.drain(9.0)
        give_labels(log, own, "order-7", "nobody's")
        result = drainer.drain(9.0)
        predict(log, own)
        again = drainer.drain(9.0)

    assert (result.matched_labels, result.unmatched_labels, again.repeated_ids) == (2, 1, 1)
    engine.dispose()


def test_the_backlog_is_told_from_the_start_of_a_long_drain_and_while_it_lasts(
    engine: sa.Engine, spool: Path, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.drain.TELL_EVERY_S", 0.0)
    for at in range(20):
        predict(log, f"a{at}", at=float(at + 1))
    told: list[Backlog] = []

    with Drainer(spool, engine, batch_rows=5, on_progress=told.append) as drainer:
        drainer.drain(30.0)

    left = [backlog.bytes_left for backlog in told]
    assert left[0] == spool_bytes(spool)
    assert left == sorted(left, reverse=True) and len(set(left)) >= 4 and left[-1] == 0
    assert [told[0].oldest_at, told[1].oldest_at] == [1.0, 6.0]


def test_what_an_earlier_drainer_stored_is_no_backlog(engine: sa.Engine, spool: Path, log: PredictionLog) -> None:
    predict(log, "a", at=1.0)
    with Drainer(spool, engine) as drainer:
        drainer.drain(2.0)
    told: list[Backlog] = []

    predict(log, "b", at=5.0)
    with Drainer(spool, engine, on_progress=told.append) as drainer:
        drainer.drain(6.0)

    assert (told[0].bytes_left, told[0].oldest_at) == (spool_bytes(spool) // 2, 5.0)
