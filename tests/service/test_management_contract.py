"""The stand-in of the tests answers as the real service does: each of its routes, asked well and badly, has the same
status and the same keys on a worker's front with a real store behind it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from monitoring.schema import FeatureSchema
from service.serving.front import Front
from tests.fronts import nothing_beyond, run
from tests.places import Place, first, record
from tests.stand_in import TOKEN, StandIn
from tests.working import working
from training.artefact import PIPELINE, SCHEMA
from training.cycle import run_cycle
from training.homes import HomeReport, report_home

__all__ = ["first"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

FREE = ("metrics", "record", "failed", "unadapted", "weights")
"""Dictionaries whose keys are no part of the contract."""


class Both(NamedTuple):
    real: Front
    stand_in: StandIn
    model: bytes


@pytest.fixture(scope="module")
def both(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A worker of a deployment that has checked, trained and promoted; and its stand-in, with as many runs."""
    home = tmp_path_factory.mktemp("contract") / "home"
    shutil.copytree(first, home)
    place = Place(home)
    runs = []
    for rows, moved in ((60, False), (600, True)):
        place.answer(rows, rows, moved=moved)
        runs.append(run_cycle(place.loop))
    assert (runs[-1].outcome, place.registry.live().previous) == ("promoted", 1)
    stand_in = StandIn(FeatureSchema.from_json((place.registry.path(2) / SCHEMA).read_bytes()))
    for _ in range(3):
        stand_in.queue("retrain", "", None)
    report_home(place.engine, HomeReport("aaaa", "alpha", "alpha:1", "0.2.0", 2, "", 0, 0.0), 0.0)
    with working(place, home) as worker:
        yield Both(Front(nothing_beyond, lambda: worker), stand_in, (place.registry.path(2) / PIPELINE).read_bytes())
    place.engine.dispose()


def differences(real: Any, other: Any, where: str = "") -> list[str]:
    """Keys that only one of two JSON values has, and places where one has an object or a list and the other has not.

    null and an empty list may stand for anything; of a list the first item speaks for all.
    """
    if real is None or other is None:
        return []
    if isinstance(real, dict) and isinstance(other, dict):
        found = [f"{where}.{name}: only one has it" for name in sorted(real.keys() ^ other.keys())]
        for name in sorted((real.keys() & other.keys()) - {*FREE}):
            found += differences(real[name], other[name], f"{where}.{name}")
        return found
    if isinstance(real, list) and isinstance(other, list):
        return differences(real[0], other[0], f"{where}[]") if real and other else []
    return [] if isinstance(real, dict | list) == isinstance(other, dict | list) else [f"{where}: of two kinds"]


GOOD = {"records": [record("car"), record("home")]}
LABEL = {"labels": [{"id": "x", "label": True}]}
WRITES = ("/manage/retrain", "/manage/rollback", "/manage/pause", "/manage/models/1/promote")

MODEL = b"PK"
"""Stands for the champion's own file."""

REQUESTS: list[tuple[str, str, Any, int]] = [
    ("GET", "/readyz", None, 200),
    ("GET", "/schema", None, 200),
    ("GET", "/nowhere", None, 404),
    ("POST", "/predict", GOOD, 200),
    ("POST", "/predict", {**GOOD, "ids": ["a", "b"]}, 200),
    ("POST", "/predict", {**GOOD, "ids": ["a"]}, 400),
    ("POST", "/predict", {"records": []}, 400),
    ("POST", "/predict", {"records": [record("car", income="much")]}, 400),  # type: ignore[arg-type]
    ("POST", "/predict", {"records": [record("car", income=1e300)]}, 422),
    ("POST", "/predict", {"records": [{"income": 1}]}, 400),
    ("POST", "/predict", b"{", 400),
    ("GET", "/predict", None, 405),
    ("POST", "/feedback", LABEL, 202),
    ("POST", "/feedback", {"labels": []}, 400),
    ("POST", "/feedback", {"labels": [{"id": "x", "label": "often"}]}, 400),
    ("POST", "/feedback", {"labels": [{"id": "", "label": True}]}, 400),
    ("POST", "/feedback", {"labels": LABEL["labels"] * 2}, 400),
    ("POST", "/feedback", {**LABEL, "more": 1}, 400),
    ("POST", "/feedback", b"[", 400),
    ("GET", "/feedback", None, 405),
    ("GET", "/manage/status", None, 200),
    ("GET", "/manage/models", None, 200),
    ("GET", "/manage/runs", None, 200),
    ("GET", "/manage/runs?limit=2", None, 200),
    ("GET", "/manage/runs?folded=true", None, 200),
    ("GET", "/manage/runs?folded=maybe", None, 400),
    ("GET", "/manage/runs?kind=retrain&trigger=manual&since=1.5", None, 200),
    ("GET", "/manage/runs?since=yesterday", None, 400),
    ("GET", "/manage/runs?since=nan", None, 400),
    ("GET", "/manage/runs?since=-1", None, 400),
    ("GET", "/manage/runs?limit=0", None, 400),
    ("GET", "/manage/runs?limit=1001", None, 400),
    ("GET", "/manage/runs?limit=many", None, 400),
    ("GET", "/manage/runs/1", None, 200),
    ("GET", "/manage/runs/999", None, 404),
    ("GET", "/manage/runs/0", None, 400),
    ("GET", "/manage/runs/last", None, 400),
    ("GET", "/manage/drift", None, 200),
    ("GET", "/manage/drift?limit=5", None, 200),
    ("GET", "/manage/drift?limit=0", None, 400),
    ("GET", "/manage/replicas", None, 200),
    ("POST", "/manage/replicas/aaaa/gone", {"why": "sold"}, 202),
    ("POST", "/manage/replicas/aaaa/gone", {"why": 5}, 400),
    ("POST", "/manage/replicas/nowhere/gone", None, 404),
    ("GET", "/manage/adaptation", None, 200),
    ("GET", "/manage/adaptation?limit=0", None, 400),
    ("POST", "/manage/adaptation", {"state": "off", "why": "an audit"}, 202),
    ("POST", "/manage/adaptation", {"state": "on"}, 202),
    ("POST", "/manage/adaptation", {"state": "maybe"}, 400),
    ("POST", "/manage/adaptation", {"why": "no state"}, 400),
    ("POST", "/manage/adaptation", b"{", 400),
    ("POST", "/manage/pause", {"why": "an audit"}, 202),
    ("POST", "/manage/pause", {"why": 5}, 400),
    ("POST", "/manage/resume", {"why": "it is over"}, 409),
    ("GET", "/manage/pause", None, 405),
    ("GET", "/manage/nowhere", None, 404),
    ("POST", "/manage/models", MODEL, 202),
    ("POST", "/manage/models?why=mine", MODEL, 202),
    ("POST", "/manage/models", b"\x80\x04.", 400),
    ("POST", "/manage/models", b"", 400),
    ("POST", "/manage/models/99/promote", {"why": ""}, 404),
    ("POST", "/manage/models/0/promote", {"why": ""}, 400),
    ("POST", "/manage/models/best/promote", {"why": ""}, 400),
    *[("POST", path, {"why": "new fees"}, 202) for path in WRITES],
    *[("POST", path, None, 202) for path in WRITES],
    *[("POST", path, {"why": 5}, 400) for path in WRITES],
    *[("POST", path, {"why": "x" * 1001}, 400) for path in WRITES],
    *[("POST", path, {"why": "\0"}, 400) for path in WRITES],
    *[("POST", path, {"who": "me"}, 400) for path in WRITES],
    *[("POST", path, b"{", 400) for path in WRITES],
    *[
        ("DELETE", f"/manage/{name}", None, 405)
        for name in ("status", "models", "runs", "drift", "adaptation", "replicas")
    ],
    *[("GET", f"/manage/{name}", None, 405) for name in ("retrain", "rollback", "pause")],
]


def asked(both: Both, method: str, path: str, body: Any, **headers: str) -> list[httpx.Response]:
    """The real answer, and the stand-in's."""
    if body == MODEL:
        body = both.model
    given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
    given["headers"] = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}", **headers}
    return [run(app, (method, path, given))[0] for app in (both.real, both.stand_in)]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"), REQUESTS, ids=[f"{r[0]} {r[1]} {str(r[2])[:30]!a}" for r in REQUESTS]
)
def test_the_stand_in_answers_as_the_service_does(both: Both, method: str, path: str, body: Any, status: int) -> None:
    real, other = asked(both, method, path, body)

    assert (real.status_code, other.status_code) == (status, status), (real.text, other.text)
    assert real.headers["content-type"] == other.headers["content-type"]
    if real.headers["content-type"] == "application/json":
        assert differences(real.json(), other.json()) == []
    else:
        assert real.text == other.text


@pytest.mark.parametrize("path", ["/manage/status", "/manage/nowhere"])
@pytest.mark.parametrize(("given", "status"), [("", 401), ("Basic eDp5", 401), ("Bearer other", 403)])
def test_the_stand_in_asks_for_the_token_as_the_service_does(both: Both, path: str, given: str, status: int) -> None:
    real, other = asked(both, "GET", path, None, authorization=given)

    assert (real.status_code, other.status_code) == (status, status)
    assert differences(real.json(), other.json()) == []


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
def test_the_stand_in_refuses_other_content_as_the_service_does(both: Both, path: str) -> None:
    real, other = asked(both, "POST", path, b"<a/>", **{"content-type": "text/xml"})

    assert (real.status_code, other.status_code) == (415, 415)
    assert differences(real.json(), other.json()) == []


def test_a_key_that_one_lacks_is_seen_and_named() -> None:
    real = {"runs": [{"id": 1, "why": ""}], "previous": None, "record": {"a": 1}}
    other = {"runs": [{"id": [1]}], "previous": 3, "record": {}, "more": 1}

    assert differences(real, other) == [
        ".more: only one has it",
        ".runs[].why: only one has it",
        ".runs[].id: of two kinds",
    ]
