"""The client with a real worker: predictions, labels, what is refused, what is sent again and what is not."""

from __future__ import annotations

import asyncio
import doctest
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import evergreen_client
import numpy as np
import pandas as pd
import pytest
from evergreen_client import (
    AsyncClient,
    BadRecords,
    Busy,
    Client,
    Denied,
    NotEvergreen,
    NotFinished,
    NotFound,
    Refused,
    ServerError,
    TooLarge,
    Unreachable,
)
from evergreen_client.errors import error_of

from monitoring.store import predictions
from monitoring.window import read_window
from tests.client.between import between
from tests.client.conftest import Served
from tests.places import drain, record
from tests.ports import free_port
from tests.real_server import wait_until
from tests.stand_in import TOKEN
from tests.test_structure import FOLDERS

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

TWO = [record("car"), record("home")]


def stored(served: Served) -> list[str]:
    """The ids of the predictions in the store, once all that was answered is there."""
    assert served.worker.log is not None
    served.worker.log.close()
    drain(served.worker.settings.spool_dir, served.place.engine, time.time())
    with served.place.engine.connect() as connection:
        return sorted(connection.execute(predictions.select().with_only_columns(predictions.c.id)).scalars())


# Answers


def test_the_example_of_the_package_says_what_happens(served: Served) -> None:
    found = doctest.testmod(evergreen_client, extraglobs={"url": served.url})

    assert (found.attempted, found.failed) == (5, 0)


def test_each_row_has_an_id_that_the_client_made_and_the_record_keeps(served: Served) -> None:
    with Client(served.url) as client:
        made, given = client.predict(TWO), client.predict(TWO, ["loan-1", "loan-2"])

    assert (made.model, made.version, made.classes, given.ids) == ("credit", 1, (False, True), ["loan-1", "loan-2"])
    assert made.probabilities is not None and [len(row) for row in made.probabilities] == [2, 2]
    assert len({*made.ids}) == 2 and all(len(each) == 36 and each[14] == "7" for each in made.ids)
    assert stored(served) == sorted([*made.ids, *given.ids])


def test_a_frame_is_answered_as_its_records_are(served: Served) -> None:
    frame = pd.DataFrame(
        {
            "purpose": pd.Categorical(["car", None, "travel"]),
            "debt": np.array([0.25, np.nan, 1.0], np.float32),
            "income": [1, 2, 3],
            "late": [True, False, True],  # no feature: it stays here
        },
        index=[7, 8, 9],
    )
    records = [
        {"income": 1, "debt": 0.25, "purpose": "car"},
        {"income": 2, "debt": None, "purpose": None},
        {"income": 3, "debt": 1.0, "purpose": "travel"},
    ]

    with Client(served.url) as client:
        assert client.predict(frame).probabilities == client.predict(records).probabilities
        with pytest.raises(BadRecords, match='the service wants "debt", which the data lacks, did you mean "debts"'):
            client.predict(frame.rename(columns={"debt": "debts"}))


def test_values_of_numpy_and_pandas_are_sent_as_what_they_mean(served: Served) -> None:
    plain = [{"income": 2.5, "debt": None, "purpose": "car"}, {"income": 1, "debt": None, "purpose": None}]
    odd = [
        {"income": np.float64(2.5), "debt": np.float32("nan"), "purpose": "car"},
        pd.Series({"income": np.int64(1), "debt": pd.NaT, "purpose": pd.NA}).to_dict(),
    ]

    with Client(served.url) as client:
        assert client.predict(odd).probabilities == client.predict(plain).probabilities
        with pytest.raises(BadRecords, match="cannot be written as JSON: a value of the type object"):
            client.predict([{"income": object()}])


def test_many_are_asked_at_once(served: Served) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(served.url, connections=4) as client:
            asked = [client.predict([record("car", float(n))], [str(n)]) for n in range(50)]
            answers = await asyncio.gather(*asked)
            assert await client.feedback([{"id": "7", "label": True}]) == 1
            assert await client.readiness() == ""
            return answers

    assert [answers.ids for answers in asyncio.run(ask())] == [[str(n)] for n in range(50)]


# Errors


def test_a_refusal_says_row_and_column(served: Served) -> None:
    with Client(served.url) as client:
        with pytest.raises(Refused, match=r"POST /predict: 400 records\[1\]\.income: expected a number") as caught:
            client.predict([record("car"), {**record("car"), "income": "much"}])
        assert (caught.value.status, caught.value.row, caught.value.column) == (400, 1, "income")
        assert caught.value.request_id
        for labels, place in (
            ([{"id": "a", "label": True}, {"id": "b", "label": "often"}], (1, "label")),
            ([{"id": "a"}], (0, None)),
            ([{"id": 5, "label": True}], (0, "id")),
            ([], (None, None)),
        ):
            with pytest.raises(Refused) as caught:
                client.feedback(labels)
            assert (caught.value.row, caught.value.column) == place, caught.value


@pytest.mark.parametrize(
    ("said", "row", "column"),
    [
        ('records[3]["monthly \\"fee\\""]: missing; send null when the value is unknown', 3, 'monthly "fee"'),
        ("ids[12]: expected a string, got 5", 12, None),
        ("records[0].größe: NaN is not JSON; send null when the value is unknown", 0, "größe"),
        ("records[0]: expected an object with one value for each feature, got a list", 0, None),
        ("records: empty; send at least one record", None, None),
        ("version 1 cannot take these records: records[0] is odd", None, None),
    ],
)
def test_the_place_of_a_refusal_is_read_from_its_words(said: str, row: int | None, column: str | None) -> None:
    refused = error_of("POST /predict", 400, {}, json.dumps({"error": said}).encode())

    assert isinstance(refused, Refused) and (refused.row, refused.column) == (row, column)


def test_each_kind_of_trouble_has_its_error(served: Served) -> None:
    with Client(served.url) as stranger, Client(served.url, TOKEN) as client:
        with pytest.raises(Denied, match="GET /manage/status: 401"):
            stranger.status()
        with pytest.raises(NotFound, match="GET /manage/runs/99: 404"):
            client.run(99)
        with pytest.raises(Refused) as refused:
            client.resume()
        assert refused.value.status == 409
        with pytest.raises(TooLarge, match="records: 10001 records"):
            client.predict([record("car")] * 10_001)
        with pytest.raises(NotFinished, match=r"run 2 is still queued after 0 s") as waited:
            client.wait(client.retrain("for the test"), timeout_s=0, poll_s=0)
        assert waited.value.state == "queued"
    with pytest.raises(ValueError, match="no HTTP header can carry"):
        Client(served.url, "a token\nand more")
    for url in ("nowhere", "ftp://127.0.0.1", "http://[", f"http://127.0.0.1:{free_port()}"):
        with pytest.raises(Unreachable, match="no Evergreen answers at"), Client(url, retry_s=0) as client:
            client.status()


def test_another_program_at_the_address_is_told_apart(served: Served) -> None:
    async def program(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[1, 2]"})

    from tests.stand_in import listening

    with listening(program) as url, Client(url) as client:
        for ask in (client.schema, client.status, client.runs, client.retrain, lambda: client.predict(TWO)):
            with pytest.raises(NotEvergreen, match="is this its address"):
                ask()


def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout_s=0.2, retry_s=0) as client, pytest.raises(Unreachable) as caught:
            client.predict(TWO)

    assert caught.value.sent


# Sent again


@pytest.mark.parametrize("trouble", ["reset", "lost", "503 0", "503", "429 1", "502", "504"])
def test_a_prediction_that_was_not_answered_is_sent_again_under_the_same_ids(served: Served, trouble: str) -> None:
    with between(served.url) as relay, Client(relay.url) as client:
        relay.troubles = [trouble, trouble]
        began = time.monotonic()
        answers = client.predict(TWO)
        took = time.monotonic() - began

    assert client.repeated == 2 and len({body for _, _, body in relay.seen}) == 1
    assert stored(served) == sorted(answers.ids * (3 if trouble == "lost" else 1))
    assert took >= (2 if trouble == "429 1" else 0)  # what Retry-After asks for


def test_a_label_of_a_prediction_that_was_sent_again_counts_once(served: Served) -> None:
    with between(served.url) as relay, Client(relay.url) as client:
        relay.troubles = ["lost"]
        answers = client.predict(TWO)
        relay.troubles = ["lost"]
        assert client.feedback([{"id": each, "label": True} for each in answers.ids]) == 2

    assert client.repeated == 2
    assert stored(served) == sorted(answers.ids * 2)
    assert served.worker.model.current is not None
    learnt = read_window(served.place.engine, served.worker.model.current.schema, labelled=True)
    assert len(learnt) == 2


def test_a_server_that_starts_a_little_later_is_waited_for(served: Served) -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", TOKEN) as client, ThreadPoolExecutor(1) as other:
        asked = other.submit(client.retrain, "nothing was sent before: once is enough")
        wait_until("a second try", lambda: client.repeated > 0)
        with between(served.url, port):
            run = asked.result(180)

    assert served.place.runs.get(run).kind == "retrain"


@pytest.mark.parametrize("trouble", ["reset", "lost", "503 0", "502"])
def test_a_write_that_may_have_been_done_is_not_sent_again(served: Served, trouble: str) -> None:
    with between(served.url) as relay, Client(relay.url, TOKEN) as client:
        relay.troubles = [trouble]
        with pytest.raises((Unreachable, Busy, ServerError)):
            client.retrain()

    assert [path for _, path, _ in relay.seen] == ["/manage/retrain"]


def test_what_would_take_too_long_is_said_at_once(served: Served) -> None:
    with between(served.url) as relay, Client(relay.url, retry_s=5) as client:
        relay.troubles = ["429 3600"]
        with pytest.raises(Busy) as caught:
            client.predict(TWO)
        assert caught.value.retry_after_s == 3600
        relay.troubles = ["500"]
        with pytest.raises(ServerError, match="500 <html>not now</html>"):  # it may fail again: nobody knows why
            client.predict(TWO)

    assert (client.repeated, len(relay.seen)) == (0, 2)


def test_retry_after_may_be_a_date() -> None:
    for date, least, most in (("Fri, 31 Dec 2100 23:59:59 GMT", 1e6, 1e10), ("Mon, 01 Jan 2001 00:00:00 GMT", 0, 0)):
        found = error_of("GET /schema", 503, {"retry-after": date}, b"")
        assert isinstance(found, Busy) and found.retry_after_s is not None and least <= found.retry_after_s <= most
    unknown = error_of("GET /schema", 503, {"retry-after": "soon"}, b"")
    assert isinstance(unknown, Busy) and unknown.retry_after_s is None


# The package


def test_the_client_is_the_asynchronous_one_without_await() -> None:
    folder = FOLDERS["evergreen_client"]
    program = "import unasync; print(unasync.synchronous(unasync.SOURCE.read_text()), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder.parent, capture_output=True, text=True, check=True
    )

    assert done.stdout == (folder / "client.py").read_text(), "run `python client/unasync.py`"


def test_something_asynchronous_that_is_left_is_told() -> None:
    program = 'import unasync; unasync.synchronous(\'"""x"""\\nasyncio.run(1)\\n\')'
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDERS["evergreen_client"].parent, capture_output=True, text=True
    )

    assert "something asynchronous is left: asyncio.run(1)" in done.stderr


def test_pandas_is_not_imported_for_callers_without_a_frame() -> None:
    program = "import sys, evergreen_client; sys.exit(','.join({'pandas', 'numpy', 'pyarrow'} & set(sys.modules)) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDERS["evergreen_client"].parent, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
