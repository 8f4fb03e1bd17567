"""`predict_file` of both clients with a real worker: lost answers, rows that are refused, what stands in the record."""

from __future__ import annotations

import asyncio
import inspect
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evergreen_client import AsyncClient, Client, Unreachable, Wanted
from evergreen_client.files import (
    Asked,
    BadRow,
    FileError,
    Progress,
    Scored,
    Service,
    open_table,
    score,
    telling,
)

from tests.client.between import between
from tests.client.conftest import Served
from tests.client.test_client import stored
from tests.places import world
from tests.ports import free_port
from tests.real_server import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

N = 450
Call = Callable[..., Scored]


def now(url: str, *arguments: Any, retry_s: float = 10, **how: Any) -> Scored:
    with Client(url, retry_s=retry_s) as client:
        return client.predict_file(*arguments, **how)


def awaited(url: str, *arguments: Any, retry_s: float = 10, **how: Any) -> Scored:
    async def ask() -> Scored:
        async with AsyncClient(url, retry_s=retry_s) as client:
            return await client.predict_file(*arguments, **how)

    return asyncio.run(ask())


@pytest.fixture(params=[now, awaited])
def call(request: pytest.FixtureRequest) -> Call:
    found: Call = request.param
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    world(N, 1).to_csv(path, index=False)
    return path


def test_every_row_is_answered_once_in_order_though_answers_are_lost(
    served: Served, call: Call, source: Path, tmp_path: Path
) -> None:
    with between(served.url) as relay:
        relay.troubles = ["", "", "", "lost", "reset", "503 0", "lost"]  # two GETs come first
        done = call(relay.url, source, tmp_path / "out.parquet", run="r", batch_rows=50)

    found = pd.read_parquet(tmp_path / "out.parquet")
    ids = [f"r-{number}" for number in range(1, N + 1)]
    assert (done.rows, done.refused, done.versions) == (N, 0, {1: N})
    assert found["id"].tolist() == ids
    assert list(found)[1:] == ["prediction", "probability_false", "probability_true", "version", "adaptation"]
    assert (found["prediction"] == (found["probability_true"] > 0.5)).all()
    kept = stored(served)
    assert set(kept) == set(ids) and len(kept) == N + 100  # the rows whose answers were lost, under the same ids
    with Client(served.url) as client:
        alone = client.predict(world(N, 1).head(3)).probabilities
    assert alone == found[["probability_false", "probability_true"]].head(3).to_numpy().tolist()


def test_a_row_that_the_service_refuses_stops_the_run_or_is_listed(
    served: Served, call: Call, source: Path, tmp_path: Path
) -> None:
    frame = world(N, 1)
    frame.loc[[120, 130], "purpose"] = "x" * 2000
    frame.loc[300, "income"] = 1e39
    frame.to_csv(source, index=False)
    out = tmp_path / "out.csv"

    with pytest.raises(BadRow, match=r"rows\.csv, row 121: purpose: 2,000 characters; send at most 1,024"):
        call(served.url, source, out, batch_rows=50, run="r")
    done = call(served.url, source, out, run="r", bad_rows="skip")

    found = pd.read_csv(out)
    assert (done.rows, done.refused, done.before) == (N, 3, 100)
    assert found.index[found["prediction"].isna()].tolist() == [120, 130, 300]
    assert done.refused_file is not None
    assert [line.split(",")[0] for line in done.refused_file.read_text().splitlines()] == ["row", "121", "131", "301"]
    assert set(stored(served)) == {f"r-{number + 1}" for number in range(N) if number not in (120, 130, 300)}


def test_a_service_that_is_not_there_ends_the_run_and_the_next_one_goes_on(
    served: Served, call: Call, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(Unreachable):
        call(f"http://127.0.0.1:{free_port()}", source, out, retry_s=0)
    assert list(tmp_path.glob("out*")) == []

    with between(served.url) as relay:
        relay.troubles = [""] * 4 + ["reset"] * 100
        with pytest.raises(Unreachable):
            call(relay.url, source, out, retry_s=0, batch_rows=50, connections=1)
        before = len(relay.seen)
        relay.troubles = []
        done = call(relay.url, source, out, retry_s=0)

    assert before < 12 and 0 < done.before < N
    assert len(pd.read_csv(out)) == N


def test_batches_that_are_too_large_are_said_with_what_to_do(
    served: Served, call: Call, source: Path, tmp_path: Path
) -> None:
    most = served.worker.settings.serve.max_records
    world(most + 1, 1).to_csv(source, index=False)

    with pytest.raises(FileError, match=rf"413 .*: begin anew with fewer rows a request \(--batch {(most + 1) // 4} "):
        call(served.url, source, tmp_path / "out.csv", batch_rows=most + 1)


def test_a_file_from_which_nothing_is_recorded_needs_a_service_that_can(
    served: Served, call: Call, source: Path, tmp_path: Path
) -> None:
    with Client(served.url) as client:
        document = client._do(evergreen_get("/docs.json"))
    if "record" in document["components"]["schemas"]["PredictRequest"]["properties"]:
        assert call(served.url, source, tmp_path / "out.csv", record=False).rows == N
        assert stored(served) == []
    else:
        with pytest.raises(FileError, match="records every answer: leave --no-record out"):
            call(served.url, source, tmp_path / "out.csv", record=False)


def evergreen_get(path: str) -> Any:
    from evergreen_client import calls

    return calls.get(path, dict)


def test_in_arrow_and_in_json_the_answers_are_the_same_to_the_last_bit(
    served: Served, source: Path, tmp_path: Path
) -> None:
    async def ask(arrow: bool) -> bytes:
        async with AsyncClient(served.url) as client:
            service = Service(client)
            if not (await service.wanted() and service.arrow):
                pytest.skip("this service takes JSON alone")

            class InOne(Service):
                async def wanted(self) -> Wanted:
                    found = await super().wanted()
                    self.arrow = arrow
                    return found

            out = tmp_path / f"{arrow}.csv"
            asked = Asked(out, run="r", batch_rows=50, bad_rows="skip")
            assert (await score(open_table(str(source)), InOne(client), asked)).refused == 4
            return out.read_bytes() + out.with_name(f"{out.name}.refused.csv").read_bytes()

    frame = world(N, 1).astype({"income": object})
    frame.loc[[7, 8], "purpose"] = None
    frame.loc[9, "purpose"] = "unseen"
    frame.loc[10, "income"] = None
    frame.loc[[11, 120], "purpose"] = "x" * 2000
    frame.loc[12, "income"] = 1e39
    frame.loc[13, "income"] = "much"
    frame.to_csv(source, index=False)

    assert asyncio.run(ask(True)) == asyncio.run(ask(False))


def test_it_waits_for_the_store_so_that_the_spool_does_not_fill(
    served: Served, call: Call, source: Path, tmp_path: Path
) -> None:
    waiting, done = served.worker.metrics.log_spool_bytes, []
    served.worker.metrics.log_spool_limit_bytes.set(2**22)
    waiting.set(0.9 * 2**22)
    with between(served.url) as relay:
        run = threading.Thread(target=lambda: done.append(call(relay.url, source, tmp_path / "out.csv", run="r")))
        run.start()
        wait_until("two looks", lambda: [path for _, path, _ in relay.seen].count("/metrics") >= 2)
        sent = [path for _, path, _ in relay.seen]
        waiting.set(2**20)
        run.join(180)

    assert "/predict" not in sent
    assert [each.rows for each in done] == [N] and len(stored(served)) == N


def test_both_clients_have_it_with_one_signature() -> None:
    assert inspect.signature(Client.predict_file) == inspect.signature(AsyncClient.predict_file)
    assert Client.predict_file.__doc__ == AsyncClient.predict_file.__doc__


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(served: Served, source: Path, tmp_path: Path) -> None:
    pipe, terminal = io.StringIO(), Terminal()
    for out, to in (("a.csv", pipe), ("b.csv", terminal)):
        with telling(to, every_s=0) as told:

            def slowly(now: Progress, told: Callable[[Progress], None] = told) -> None:
                told(now)
                time.sleep(0.11)

            now(served.url, source, tmp_path / out, batch_rows=150, on_progress=slowly)

    lines = pipe.getvalue().splitlines()
    assert lines[0].startswith("100% 150 rows, ") and lines[0].endswith(", version 1")
    assert lines[-1].startswith("100% 450 rows, ")
    assert "█" * 30 in terminal.getvalue() and "450 rows" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")  # nothing of it is left
