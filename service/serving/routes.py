"""The routes beside the hot path: health, metrics, the live schema, the OpenAPI page, and who answers `/manage`."""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.json_schema import json_schema
from service.process import DISTRIBUTION, installed_version
from service.serving.asgi import Receive, Scope, Send
from service.serving.pages import PAGES, page
from service.serving.request import Reject

if TYPE_CHECKING:
    from service.serving.worker import Worker

JSON: Final = b"application/json"
TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"

FRAMEWORK: Final = "/schema.json"
"""The one path that BentoML answers: its Python client asks there what the service can do."""

TEMPLATES: Final = (
    (re.compile(r"/(predict|feedback|schema|metrics|livez|readyz|healthz|docs\.json|v2)"), None),
    (re.compile(r"/v2/health/(live|ready)"), None),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer"), "/v2/models/{model}/infer"),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/ready"), "/v2/models/{model}/ready"),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?"), "/v2/models/{model}"),
    (re.compile(r"/manage/(models|runs|retrain|rollback|pause|resume|drift|status|erasures|openapi\.json)"), None),
    (re.compile(r"/manage/(adaptation|replicas)"), None),
    (re.compile(r"/manage/replicas/[^/]+/gone"), "/manage/replicas/{home}/gone"),
    (re.compile(r"/manage/models/[^/]+/promote"), "/manage/models/{version}/promote"),
    (re.compile(r"/manage/models/[^/]+/compare/[^/]+"), "/manage/models/{version}/compare/{other}"),
    (re.compile(r"/manage/models/[^/]+/tags"), "/manage/models/{version}/tags"),
    (re.compile(r"/manage/models/[^/]+/notes"), "/manage/models/{version}/notes"),
    (re.compile(r"/manage/models/[^/]+"), "/manage/models/{version}"),
    (re.compile(r"/manage/runs/[^/]+"), "/manage/runs/{id}"),
    (re.compile(r"/manage/labels/[^/]+"), "/manage/labels/{id}"),
    (re.compile(r"/manage/reports/[^/]+"), "/manage/reports/{id}"),
    (re.compile(r"/page/(session|state|quality|decisions|drift|distribution|segments|traffic|events)"), None),
    (re.compile(r"/page/drift/[^/]+/.+"), "/page/drift/{check}/{feature}"),
    (re.compile(r"/page/runs/[^/]+"), "/page/runs/{id}"),
    (re.compile(r"/page/versions/[^/]+/[^/]+"), "/page/versions/{a}/{b}"),
    (re.compile(r"/page/static/[^/]+"), "/page/static/{name}"),
)


READ_ONLY: Final = frozenset({"/livez", "/healthz", "/readyz", "/metrics", "/schema", "/docs.json", *PAGES})


def template(path: str) -> str:
    """The route a path belongs to, from a fixed set: what `requests_total{route}` may be labelled with."""
    for pattern, name in TEMPLATES:
        if pattern.fullmatch(path):
            return name or path
    if path == "/" or path.startswith("/docs"):
        return "page" if path in PAGES else "unknown"
    return "framework" if path == FRAMEWORK else "unknown"


async def answer(worker: Worker, scope: Scope, receive: Receive, send: Send) -> bool:
    """Answer a request that is not on the hot path; False when it is BentoML's to answer."""
    path: str = scope["path"]
    if path in READ_ONLY and scope["method"] not in ("GET", "HEAD"):
        raise Reject(405, f"{path} takes GET, not {scope['method']}", allow="GET, HEAD")
    if path in ("/livez", "/healthz"):
        await respond(send, 200, b"\n", b"text/plain")
    elif path == "/readyz":
        reason = worker.why_not_ready
        await (respond(send, 200, b"\n", b"text/plain") if reason is None else refuse(send, 503, reason, 1))
    elif path == "/metrics":
        await respond(send, 200, await asyncio.to_thread(scrape, worker), TEXT)
    elif path == "/schema":
        await _live_page(worker, send, schema_page)
    elif path == "/docs.json":
        from service.serving.openapi import document

        await _live_page(worker, send, document)
    elif path == "/manage" or path.startswith("/manage/"):
        from service.serving.gate import guarded

        application = await asyncio.to_thread(_management, worker)
        await guarded(application, worker, scope, receive, send)
    elif path.startswith("/page/") and path not in PAGES:
        from service.web.answer import answer_page

        await answer_page(worker, scope, receive, send)
    elif path == FRAMEWORK:
        return False
    elif path in PAGES:
        content_type, body, headers = await asyncio.to_thread(page, path)
        known = next((value for name, value in scope["headers"] if name == b"if-none-match"), None)
        same = known is not None and (b"etag", known) in headers
        await respond(send, 304 if same else 200, b"" if same else body, content_type, headers)
    else:
        await refuse(send, 404, f"{path[:80]}: no such route; the API is described at /docs")
    return True


def scrape(worker: Worker) -> bytes:
    """What Prometheus reads: all processes of this server, and which version each worker serves just now."""
    from monitoring.metrics import exposition
    from service.handover import read_reports

    lines = [
        *_build_info(),
        "# HELP evergreen_model_info The version each worker answers with",
        "# TYPE evergreen_model_info gauge",
    ]
    for report in read_reports(worker.run_dir / "workers"):
        if report.serving is not None:
            labels = f'model="{worker.settings.model.name}",version="{report.serving}"'
            lines.append(f'evergreen_model_info{{{labels},engine="{report.engine}",worker="{report.slot}"}} 1')
    return exposition(worker.metrics.directory) + ("\n".join(lines) + "\n").encode()


@lru_cache(maxsize=1)
def _build_info() -> tuple[str, ...]:
    """What this server is made of, as a series that is always 1."""
    packages = (("version", DISTRIBUTION), ("bentoml", "bentoml"), ("sklearn", "scikit-learn"))
    known = {label: installed_version(package) for label, package in packages} | {"python": platform.python_version()}
    labels = ",".join(f'{label}="{known[label]}"' for label in ("version", "python", "bentoml", "sklearn"))
    return (
        "# HELP evergreen_build_info What this server is made of",
        "# TYPE evergreen_build_info gauge",
        f"evergreen_build_info{{{labels}}} 1",
    )


def schema_page(worker: Worker) -> dict[str, Any]:
    """The live features as JSON Schema, with the version they belong to."""
    model = worker.model.current
    assert model is not None
    return {"model": model.name, "version": model.version, **json_schema(model.schema, model.decoder.max_chars)}


async def _live_page(worker: Worker, send: Send, content: Callable[[Worker], dict[str, Any]]) -> None:
    if worker.model.current is None:
        await refuse(send, 503, worker.why_not_ready or "not ready", 1)
    else:
        await respond(send, 200, msgspec.json.encode(content(worker)), JSON)


def _management(worker: Worker) -> Any:
    from service.serving.management.application import application

    return application(worker)


async def refuse(send: Send, status: int, message: str, retry_after_s: int | None = None) -> None:
    """Answer an error as JSON, `{"error": message}`."""
    extra = [] if retry_after_s is None else [(b"retry-after", b"%d" % retry_after_s)]
    await respond(send, status, msgspec.json.encode({"error": message}), JSON, extra)


async def respond(
    send: Send, status: int, body: bytes, content_type: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a whole response."""
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *(extra or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
