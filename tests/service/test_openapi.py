"""Both OpenAPI documents tell the truth: generated requests, valid and not, get only answers that they describe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from monitoring.store import open_store
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.keys import known_token, management_token
from service.serving.front import Front
from service.serving.worker import Worker
from tests.artefacts import make_artefact

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@schemathesis.serializer("text/csv", "application/x-ndjson", "application/vnd.apache.arrow.stream")
def as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


PAGES = ("/docs.json", "/manage/openapi.json")
EXAMPLES = 25


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("artefact") / "1"
    make_artefact(folder)
    return folder


@pytest.fixture
def server(tmp_path: Any, store_url: str, artefact: Any) -> Iterator[tuple[Front, dict[str, str]]]:
    """The application of one worker without a controller, so that runs are queued and not done; and its token."""
    found = load(
        environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_STORE__URL": store_url, "EVERGREEN_SERVE__WORKERS": "1"}
    )
    management_token(found)
    write_live(found.live_file, Live(model="evergreen", champion=LiveVersion(1, str(artefact))))
    open_store(store_url).dispose()  # makes the tables
    worker = Worker(found, tmp_path / "run", "api-1")
    worker.start()

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"].endswith("shutdown"):
                return

    yield Front(beyond, lambda: worker), {"authorization": f"Bearer {known_token(found)}"}
    worker.close()


@pytest.mark.parametrize("page", PAGES)
def test_generated_requests_get_described_answers(server: tuple[Front, dict[str, str]], page: str) -> None:
    app, token = server
    load_all_checks()
    api = schemathesis.openapi.from_asgi(page, app, headers=token)
    wrong = []
    for operation in (found.ok() for found in api.get_all_operations()):
        for mode in GenerationMode:
            has_input = operation.body or operation.query or operation.path_parameters
            if mode is GenerationMode.NEGATIVE and not has_input:
                continue  # nothing can be wrong about it

            @settings(
                max_examples=EXAMPLES if has_input else 1,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                case.call_and_validate(headers=token, checks=CHECKS)

            try:
                check()
            except Unsatisfiable:  # every string is one: nothing can be wrong about it, either
                assert mode is GenerationMode.NEGATIVE
            except (Exception, FailureGroup) as error:  # one operation's fault does not hide another's
                wrong.append(f"{operation.label} ({mode.value}): {error}")
    assert not wrong, "\n\n".join(wrong)
