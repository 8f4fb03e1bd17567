"""`/docs.json` tells the truth: generated requests get only answers that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.fastlane import FastLane
from service.live import Live, LiveVersion, write_live
from service.settings import load
from service.worker import Worker
from tests.artefacts import make_artefact


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("home")
    make_artefact(home / "1")
    found = load(environ={"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__WORKERS": "1"})
    write_live(found.live_file, Live(model="evergreen", champion=LiveVersion(1, str(home / "1"))))
    worker = Worker(found, home / "run", "api-1")
    worker.start()

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"].endswith("shutdown"):
                return

    yield schemathesis.openapi.from_asgi("/docs.json", FastLane(beyond, lambda: worker))
    worker.close()


@pytest.mark.parametrize("path", ["/predict", "/feedback", "/schema", "/readyz"])
def test_generated_requests_get_described_answers(api: Any, path: str) -> None:
    (operation,) = [found.ok() for found in api.get_all_operations() if found.ok().path == path]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        # JSON Schema has no words for "as many ids as records" and "printable": such requests may be refused.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
