"""A real server says which engine answers, and answers the same by both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.artefacts import example_record
from tests.real_server import SMALL, Server
from training.trees import is_built

pytestmark = pytest.mark.skipif(not is_built(), reason="the compiled engine is not built here: there was no compiler")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[Path], Path]) -> Path:
    return trained(tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="module", params=["auto", "onnx"])
def server(home: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    """One after the other, of the same versions."""
    server = Server(home, **SMALL, SERVE__WORKERS="1", SERVE__ENGINE=request.param, SCHEDULE__CHECK_INTERVAL_S="600")
    try:
        yield request.param, server.start().wait_ready()
    finally:
        server.end()


ANSWERS: dict[str, Any] = {}


def test_status_metadata_and_metric_say_which_engine_answers(server: tuple[str, Server]) -> None:
    setting, running = server
    engine, platform = ("trees", "evergreen_trees") if setting == "auto" else ("onnx", "onnx_onnxv1")

    with running.client() as client:
        assert client.status()["engine"] == engine
    assert httpx.get(f"{running.url}/v2/models/evergreen").json()["platform"] == platform
    assert f'evergreen_model_info{{model="evergreen",version="1",engine="{engine}",worker="api-1"}} 1' in (
        httpx.get(f"{running.url}/metrics").text
    )


def test_both_engines_answer_one_row_and_a_thousand_alike(server: tuple[str, Server]) -> None:
    setting, running = server
    records = [example_record(income=20_000.0 + row) for row in range(1_000)]

    found = httpx.post(f"{running.url}/predict", json={"records": records}, timeout=60).json()["probabilities"]
    alone = httpx.post(f"{running.url}/predict", json={"records": records[:1]}, timeout=60).json()["probabilities"]

    assert alone == found[:1]
    other = ANSWERS.setdefault("first", found)
    assert max(abs(a[1] - b[1]) for a, b in zip(found, other, strict=True)) < 1e-5
    assert (found == other) == (setting == "auto")
