from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evergreen_client import BadRecords, Client, EvergreenClientError, Refused, Unreachable
from evergreen_client.frames import json_columns, json_labels

from monitoring.decode import RequestDecoder
from monitoring.schema import FeatureSchema
from service import sample
from service.command.rows import RowsError, read_rows
from service.command.traffic import Progress, batch_for, replay_traffic
from tests.ports import free_port
from tests.stand_in import StandIn, serving


@pytest.fixture
def rows() -> pd.DataFrame:
    return sample.frame(500, start=4000)


@pytest.fixture
def service(rows: pd.DataFrame) -> Iterator[StandIn]:
    ignore = (sample.TIME, sample.LABEL_DELAY)
    with serving(StandIn(FeatureSchema.infer(rows, sample.TARGET, ignore=ignore))) as stand_in:
        yield stand_in


# A replay


def test_every_row_is_sent_once_and_its_label_follows(service: StandIn, rows: pd.DataFrame) -> None:
    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=37)

    assert summary.ok
    assert (summary.rows_sent, summary.rows_failed, summary.labels_sent, summary.labels_failed) == (500, 0, 500, 0)
    assert set(service.records[0]) == set(sample.FEATURES)  # no time, no target, no delay
    assert sorted(record["income"] for record in service.records) == sorted(rows["income"])
    assert summary.versions == {1: 500}
    assert 0 < summary.p50_ms <= summary.p99_ms


def test_labels_belong_to_their_rows(service: StandIn, rows: pd.DataFrame) -> None:
    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=10, clients=3)

    sent = dict(zip(service.ids, service.records, strict=True))
    truth = dict(zip(rows["income"], rows[sample.TARGET], strict=True))
    assert service.labels == {each: truth[record["income"]] for each, record in sent.items()}
    for answer in summary.answers:
        part = rows.iloc[answer.first_row : answer.first_row + len(answer.ids)]
        assert answer.labels == part[sample.TARGET].tolist()
        assert [sent[each]["income"] for each in answer.ids] == part["income"].tolist()


def test_labels_that_take_longer_come_later(service: StandIn, rows: pd.DataFrame) -> None:
    few = rows.iloc[:3]

    replay_traffic(service.url, few, target=sample.TARGET, rate=0, batch=3, label_delay_s=[0.4, 0.0, 0.2])

    assert service.label_order == [service.ids[1], service.ids[2], service.ids[0]]


def test_rows_go_out_in_the_order_of_the_frame_with_one_client(service: StandIn, rows: pd.DataFrame) -> None:
    replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=50, clients=1)

    assert [record["income"] for record in service.records] == rows["income"].tolist()


def test_without_labels_none_are_sent(service: StandIn, rows: pd.DataFrame) -> None:
    summary = replay_traffic(service.url, rows.drop(columns=sample.TARGET), target="", rate=0, label_delay_s=None)

    assert summary.ok
    assert (summary.labels_sent, service.labels) == (0, {})


def test_rows_whose_label_is_unknown_get_none(service: StandIn, rows: pd.DataFrame) -> None:
    rows[sample.TARGET] = rows[sample.TARGET].astype(float)
    rows.loc[rows.index[:100], sample.TARGET] = np.nan

    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0)

    assert (summary.rows_sent, summary.labels_sent) == (500, 400)
    assert {type(label) for label in service.labels.values()} == {int}


def test_each_version_is_counted_and_named_in_the_order_seen(service: StandIn, rows: pd.DataFrame) -> None:
    service.version = lambda row: 1 if row < 300 else 2

    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=100, clients=1)

    assert list(summary.versions.items()) == [(1, 300), (2, 200)]
    assert [answer.version for answer in summary.answers] == [1, 1, 1, 2, 2]
    assert summary.to_dict()["versions"] == {"1": 300, "2": 200}


def test_acknowledged_ids_are_written_down(service: StandIn, rows: pd.DataFrame, tmp_path: Path) -> None:
    service.refuses = lambda request: (503, "busy") if request == 2 else None

    replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=100, ids_out=tmp_path / "ids.jsonl")

    lines = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == set(service.ids)
    assert all(line["version"] == 1 and 4000 <= line["row"] < 4500 for line in lines)


def test_progress_ends_with_all_rows_and_no_label_waiting(service: StandIn, rows: pd.DataFrame) -> None:
    seen: list[Progress] = []

    replay_traffic(
        service.url, rows, target=sample.TARGET, rate=0, batch=100, label_delay_s=0.1, on_progress=seen.append
    )

    assert max(step.labels_waiting for step in seen) > 0
    last = seen[-1]
    assert (last.rows_sent, last.labels_sent, last.labels_waiting, last.wait_s) == (500, 500, 0, 0.0)


def test_a_stopped_replay_sends_the_labels_of_what_it_sent(service: StandIn, rows: pd.DataFrame) -> None:
    stop = threading.Event()

    summary = replay_traffic(
        service.url,
        rows,
        target=sample.TARGET,
        rate=1,
        batch=50,
        clients=1,
        label_delay_s=3600,
        stop=stop,
        on_answer=lambda answer: stop.set(),
    )

    assert (summary.stopped, summary.rows_sent, summary.labels_sent) == (True, 50, 50)
    assert summary.ok


def test_thousands_of_rows_a_second_are_sustained(service: StandIn) -> None:
    rows = sample.frame(6000, start=4000)

    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=4000)

    assert summary.ok and summary.rows_sent == 6000
    assert summary.requests <= 6000 / batch_for(4000) * 2 + 10


@pytest.mark.parametrize(("rate", "batch"), [(1, 1), (20, 1), (200, 10), (2000, 100), (50_000, 1000), (0, 200)])
def test_the_batch_follows_the_rate(rate: float, batch: int) -> None:
    assert batch_for(rate) == batch


def test_the_summary_says_how_good_each_version_was(service: StandIn, rows: pd.DataFrame) -> None:
    service.version = lambda row: 1 if row < 300 else 2

    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=100, clients=1)

    whole, second = summary.quality(), summary.quality(2)
    assert whole is not None and second is not None
    assert (whole.metric, whole.rows, whole.value) == ("auc", 500, 0.5)  # the stand-in says the same of every row
    assert second.metrics["accuracy"] == pytest.approx(1 - rows[sample.TARGET].iloc[300:].mean())
    assert summary.to_dict()["quality"]["2"]["rows"] == 200


# Trouble


def test_a_refused_request_fails_its_rows_and_the_reason_is_kept(service: StandIn, rows: pd.DataFrame) -> None:
    service.refuses = lambda request: (503, "busy, try again") if request in (2, 4) else None

    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0, batch=100)

    assert not summary.ok
    assert (summary.rows_sent, summary.rows_failed, summary.labels_sent) == (300, 200, 300)
    assert summary.reasons == {"POST /predict: 503 busy, try again": 2}


def test_labels_that_are_refused_are_counted(service: StandIn, rows: pd.DataFrame) -> None:
    service.refuses_labels = True

    summary = replay_traffic(service.url, rows, target=sample.TARGET, rate=0)

    assert not summary.ok
    assert (summary.rows_sent, summary.labels_sent, summary.labels_failed) == (500, 0, 500)


def test_nothing_at_the_url_is_said_with_the_remedy(rows: pd.DataFrame) -> None:
    with pytest.raises(Unreachable, match=r"no Evergreen answers at http://127.0.0.1:\d+ .*`evergreen serve`"):
        replay_traffic(f"http://127.0.0.1:{free_port()}", rows, target=sample.TARGET, rate=0)


def test_a_server_that_comes_back_is_found_again_with_retry(rows: pd.DataFrame) -> None:
    schema = FeatureSchema.infer(rows, sample.TARGET, ignore=(sample.TIME, sample.LABEL_DELAY))
    port = free_port()
    stand_in = StandIn(schema)
    halfway, back = threading.Event(), threading.Event()
    results: list[Any] = []

    def on_answer(answer: Any) -> None:
        if answer.first_row >= 200:
            halfway.set()
            back.wait(180)

    def replay() -> None:
        results.append(
            replay_traffic(
                f"http://127.0.0.1:{port}",
                rows,
                target=sample.TARGET,
                rate=0,
                batch=50,
                clients=1,
                retry_s=120,
                on_answer=on_answer,
            )
        )

    thread = threading.Thread(target=replay)
    with serving(stand_in, port):
        thread.start()
        assert halfway.wait(180)
    back.set()
    with serving(stand_in, port):
        thread.join(180)

    assert results[0].ok and results[0].rows_sent == 500


def test_a_feature_the_data_lacks_is_named_before_anything_is_sent(service: StandIn, rows: pd.DataFrame) -> None:
    with pytest.raises(BadRecords, match=r'the service wants "income", which the data lacks, did you mean "incomes"\?'):
        replay_traffic(service.url, rows.rename(columns={"income": "incomes"}), target=sample.TARGET, rate=0)

    assert service.predict_requests == 0


def test_labels_that_the_data_lacks_are_named(service: StandIn, rows: pd.DataFrame) -> None:
    with pytest.raises(RowsError, match='no column "outcome" to send labels from'):
        replay_traffic(service.url, rows, target="outcome", rate=0)


def test_something_else_at_the_url_is_told_apart(tmp_path: Path, service: StandIn, rows: pd.DataFrame) -> None:
    service.schema = None  # type: ignore[assignment]  # whatever answers /schema now, it fails

    with pytest.raises(EvergreenClientError):
        replay_traffic(service.url, rows, target=sample.TARGET, rate=0)


# Values


def test_values_become_what_json_can_carry() -> None:
    frame = pd.DataFrame(
        {
            "n": [1.5, np.nan, np.inf],
            "i": [1, 2, 3],
            "gap": pd.array([1, None, 3], dtype="Int64"),
            "b": [True, None, False],
            "b1": [1.0, 0.0, np.nan],
            "t": pd.to_datetime(["2024-05-01 12:30", None, "2024-05-02 00:00"]),
            "zone": pd.to_datetime(["2024-05-01 12:30+02:00"] * 3),
            "c": ["x", None, ""],
            "code": pd.Categorical([1.0, 2.5, None]),
        }
    )
    kinds = dict.fromkeys(("n", "i", "gap"), "numeric") | dict.fromkeys(("b", "b1"), "boolean")
    kinds |= dict.fromkeys(("t", "zone"), "datetime") | dict.fromkeys(("c", "code"), "categorical")

    columns = json_columns(frame, kinds)

    assert columns == {
        "n": [1.5, None, None],
        "i": [1, 2, 3],
        "gap": [1.0, None, 3.0],
        "b": [True, None, False],
        "b1": [True, False, None],
        "t": ["2024-05-01T12:30:00.000000Z", None, "2024-05-02T00:00:00.000000Z"],
        "zone": ["2024-05-01T10:30:00.000000Z"] * 3,
        "c": ["x", None, ""],
        "code": ["1", "2.5", None],
    }


def test_what_is_sent_means_what_training_read() -> None:
    """The two ways from a file to the model, through training and through JSON, end in the same canonical frame."""
    frame = sample.frame(300, start=4000).drop(columns=sample.LABEL_DELAY)
    frame["opened"] = frame[sample.TIME] - pd.Timedelta(days=3)
    frame["code"] = pd.Categorical(np.where(frame["age"] > 40, 1.0, np.nan))
    schema = FeatureSchema.infer(frame, sample.TARGET, ignore=(sample.TIME,))
    columns = json_columns(frame, {feature.name: feature.kind for feature in schema.features})
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    batch = RequestDecoder(schema, 10_000).decode(json.dumps({"records": records}).encode())

    pd.testing.assert_frame_equal(batch.frame(), schema.canonical(frame).reset_index(drop=True))


@pytest.mark.parametrize(("kind", "value"), [("numeric", "old"), ("boolean", "yes"), ("datetime", "soon")])
def test_a_value_that_does_not_fit_names_its_column(kind: str, value: str) -> None:
    with pytest.raises(BadRecords, match=f'"x" should be {kind}'):
        json_columns(pd.DataFrame({"x": [value]}), {"x": kind})


def test_labels_are_named_as_the_service_names_them() -> None:
    assert json_labels(pd.Series([1.0, 0.0, np.nan]), (0, 1)) == [1, 0, None]
    assert json_labels(pd.Series([True, False]), (0, 1)) == [1, 0]
    assert json_labels(pd.Series([1, 2]), ("1", "2")) == ["1", "2"]
    assert json_labels(pd.Series([1.5, 2.0]), ()) == [1.5, 2.0]
    assert json_labels(pd.Series(["new", "a"]), ("a", "b")) == ["new", "a"]  # the world may grow a class


# Rows of a file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    frame = pd.DataFrame({"day": ["2024-03-01", "2024-01-01", "2024-02-01", "2024-01-01"], "x": [3, 1, 2, 1.5], "y": 0})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path / "rows.csv"


def test_rows_of_a_file_come_in_time_order(file: Path) -> None:
    rows = read_rows(str(file), target="y", time_column="day")

    assert rows["x"].tolist() == [1, 1.5, 2, 3]
    assert read_rows(str(file), target="y")["x"].tolist() == [3, 1, 2, 1.5]


def test_from_and_until_are_rows_or_shares_of_that_order(file: Path) -> None:
    rows = read_rows(str(file), target="y", time_column="day", first="50%", until="3")

    assert rows["x"].tolist() == [2]
    assert rows.index.tolist() == [2]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"target": "z"}, 'has no column "z"; it has day, x, y'),
        ({"target": "y", "time_column": "dat"}, 'has no column "dat", did you mean "day"'),
        ({"target": "y", "time_column": "x", "first": "9"}, "no rows from 9"),
        ({"target": "y", "first": "many"}, 'expected rows \\("3000"\\) or a share'),
    ],
)
def test_rows_that_cannot_be_read_as_asked_say_why(file: Path, how: dict[str, str], said: str) -> None:
    with pytest.raises(RowsError, match=said):
        read_rows(str(file), **how)  # type: ignore[arg-type]


def test_the_sample_begins_behind_its_training_rows() -> None:
    rows = read_rows("sample", target=sample.TARGET, until="4100")

    pd.testing.assert_frame_equal(rows, sample.frame(100, start=4000))
    with pytest.raises(RowsError, match="no end to take a share of"):
        read_rows("sample", target=sample.TARGET, until="50%")


# The client


def test_the_client_predicts_and_sends_labels_back(service: StandIn, rows: pd.DataFrame) -> None:
    columns = json_columns(rows.iloc[:2], {f.name: f.kind for f in service.schema.features})
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    with Client(service.url) as client:
        answer = client.predict(records)
        assert client.feedback([{"id": each, "label": 1} for each in answer.ids]) == 2
        assert client.readiness() == ""
        assert client.schema()["x-evergreen"]["target"] == sample.TARGET

    assert service.labels == dict.fromkeys(answer.ids, 1)


def test_the_clients_errors_carry_status_and_words_of_the_service(service: StandIn) -> None:
    with Client(service.url) as client, pytest.raises(Refused, match=r"POST /predict: 400 .*missing") as caught:
        client.predict([{"age": 1}])

    assert caught.value.status == 400
