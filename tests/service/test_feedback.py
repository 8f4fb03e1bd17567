"""Which labels the door takes."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from monitoring.decode import InvalidRequest
from monitoring.feature import Feature
from monitoring.schema import FeatureSchema
from service.serving.answer import Feedback
from service.serving.feedback import check_labels

TEN = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"

NOW = 1_764_000_000.0  # 2025-11-24T16:00:00Z
BINARY = FeatureSchema((Feature("x", "numeric"),), "y", "binary", ("no", "yes"))
MANY = FeatureSchema((Feature("x", "numeric"),), "y", "multiclass", tuple(range(100)))
AMOUNT = FeatureSchema((Feature("x", "numeric"),), "y", "regression")


def check(schema: FeatureSchema | None, *sent: dict[str, Any]) -> None:
    body = msgspec.json.encode({"labels": [{"id": f"id-{at}", **label} for at, label in enumerate(sent)]})
    check_labels(msgspec.json.decode(body, type=Feedback).labels, schema, NOW)


@pytest.mark.parametrize(
    ("schema", "sent", "words"),
    [
        (BINARY, {"label": "maybe"}, 'labels[1].label: "maybe" is no class of the model; its classes are "no", "yes"'),
        (MANY, {"label": 100}, f"labels[1].label: 100 is no class of the model; its classes are {TEN}"),
        (MANY, {"label": True}, "labels[1].label: expected an integer such as 0, got True"),
        (AMOUNT, {"label": 1e31}, "labels[1].label: expected a finite number within ±1e+30, got 1e+31"),
        (None, {"label": "x" * 2000}, "labels[1].label: 2,000 characters; send at most 1,024"),
        (None, {"label": 2**101}, "labels[1].label: expected a number within ±1e+30"),
        (AMOUNT, {"label": 1, "observed_at": "2026-02-30"}, "observed_at: expected seconds since 1970 or an ISO 8601"),
        (AMOUNT, {"label": 1, "observed_at": "٢٠٢٥-01-31"}, "labels[1].observed_at: expected seconds since 1970"),
        (AMOUNT, {"label": 1, "observed_at": 1e300}, "observed_at: expected a time of the years 1 to 9999"),
        (
            AMOUNT,
            {"label": 1, "observed_at": NOW + 301},
            "labels[1].observed_at: 2025-11-24T16:05:01Z is more than 5 minutes ahead of this server's clock, "
            "2025-11-24T16:00:00Z",
        ),
        (AMOUNT, {"label": 1, "id": "id-0"}, "labels[1].id: the same id as labels[0]"),
        (AMOUNT, {"label": 1, "id": "x" * 129}, "labels[1].id: 129 characters; a prediction id has 1 to 128"),
        (AMOUNT, {"label": 1, "id": ""}, "labels[1].id: 0 characters"),
        (AMOUNT, {"label": 1, "id": "a\nb"}, "labels[1].id: has characters that cannot be printed"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_its_place_and_the_remedy(
    schema: FeatureSchema | None, sent: dict[str, Any], words: str
) -> None:
    good = {"label": schema.classes[0] if schema and schema.classes else 1}
    with pytest.raises(InvalidRequest) as refused:
        check(schema, good, {**good, **sent} if "label" not in sent or schema is None else sent)

    assert words in refused.value.message and refused.value.status == 400


def test_good_labels_of_every_kind_and_time_are_taken() -> None:
    check(BINARY, {"label": "yes"}, {"label": "no", "observed_at": NOW + 299}, {"label": "no", "observed_at": -1e9})
    check(MANY, {"label": 99}, {"label": 7.0}, {"label": 0, "observed_at": "1905-01-01"})
    check(AMOUNT, {"label": -1e30}, {"label": 5, "observed_at": "2025-11-24T18:04:00+02:00"})
    check(None, {"label": "anything"}, {"label": True}, {"label": 1.5, "observed_at": None})


def test_ten_thousand_labels_hold_the_event_loop_for_milliseconds() -> None:
    labels = [
        {"id": f"01a20db6-051f-7105-899b-{at:012x}", "label": at % 100, "observed_at": "2025-11-24T12:00:00Z"}
        for at in range(10_000)
    ]
    body = msgspec.json.encode({"labels": labels})
    decode = msgspec.json.Decoder(Feedback).decode
    times = []
    for _ in range(7):
        began = time.process_time()
        check_labels(decode(body).labels, MANY, NOW)
        times.append(time.process_time() - began)

    assert min(times) < 0.25, "some 10 ms of processor"
