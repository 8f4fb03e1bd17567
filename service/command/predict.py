"""`evergreen predict`: the answers to every row of a file, of a running service or, without one, of a version of this
home. Reading, writing, order and going on after a kill are `evergreen_client.files`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen_client import AsyncClient, Wanted
from evergreen_client.files import Asked, Dialect, Progress, Scored, Service, Table, open_table, score
from evergreen_client.files.answering import Answer, json_body, refused_row
from evergreen_client.files.reading import head_of

from monitoring.decode import InvalidRequest
from service.command import printing as show
from service.command.versions import versions_of
from service.handover import LiveVersion
from service.settings import SettingsError
from training.source import dialect

if TYPE_CHECKING:
    from evergreen_client.files import Answerer

    from service.serving.predictor import ServedModel
    from service.settings import Settings


def predict(
    settings: Settings,
    source: str,
    asked: Asked,
    *,
    url: str,
    token: str = "",
    version: int | None = None,
    retry_s: float = 300.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Scored:
    """Score a file by the service at `url`, or by a version of this home; `asked.out` "." stands for beside the file.

    `retry_s` is how long a request is sent again while nobody answers. Raises an `EvergreenClientError`, and offline
    `UnknownVersion`, `ArtefactError` and `NoStore`.
    """
    head = head_of(source)
    table = open_table(source, _dialect(head) if head else None)
    if asked.out == Path():
        asked = replace(asked, out=beside(source, table))
    return asyncio.run(_predict(settings, table, asked, url, token, version, retry_s, on_progress))


async def _predict(
    settings: Settings,
    table: Table,
    asked: Asked,
    url: str,
    token: str,
    version: int | None,
    retry_s: float,
    on_progress: Callable[[Progress], None] | None,
) -> Scored:
    if version is not None:
        return await score(table, offline(settings, version), asked, on_progress)
    async with AsyncClient(url, token, retry_s=retry_s, connections=asked.connections) as client:
        return await score(table, Service(client, record=asked.record), asked, on_progress)


def beside(source: str, table: Table) -> Path:
    """Where the output goes when it is not said: `customers.csv` -> `customers.predictions.csv`, in the same folder.

    Of a URL it goes to the working directory. Raises `SettingsError` for a glob.
    """
    if any(letter in source for letter in "*?["):
        raise SettingsError(f"--out: say where the answers to {table.source} go, a name with .csv or .parquet")
    path = Path(source.rstrip("/").rpartition("/")[2]) if "://" in source else Path(source)
    name = path.name.partition(".")[0] or "rows"
    return path.with_name(f"{name}.predictions.{table.kind}")


def _dialect(head: bytes) -> Dialect:
    found = dialect(head)
    return Dialect(found.separator, found.decimal, "utf-8" if found.encoding == "utf-8-sig" else found.encoding)


# -- without a server ------------------------------------------------------------------------------------------------


class Offline:
    """A version in this process. It reads rows as the service does, and answers with its own output: no adaptation."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.name = f"version {model.version}, offline"

    async def wanted(self) -> Wanted:
        schema = self.model.schema
        kinds: dict[str, str] = {feature.name: feature.kind for feature in schema.features}
        return Wanted(kinds, schema.target, schema.task, schema.classes)

    def batch_rows(self, wanted: Wanted) -> int:
        return min(1000, self.model.decoder.max_records)

    async def answer(self, columns: Mapping[str, Any], ids: Sequence[str]) -> Answer:
        return await asyncio.to_thread(self._answer, columns, ids)

    def _answer(self, columns: Mapping[str, Any], ids: Sequence[str]) -> Answer:
        from service.serving.predictor import Unpredictable

        model = self.model
        try:
            predictions, rows = model.predict(model.decoder.decode(json_body(columns, ids)))
        except (InvalidRequest, Unpredictable) as error:
            raise refused_row(str(error)) or error from None
        by_class = None if rows is None else list(zip(*rows, strict=True))
        return Answer(predictions, by_class, model.classes or None, model.version, None)


def offline(settings: Settings, version: int) -> Answerer:
    """A version of this home, loaded. Raises `UnknownVersion`, `ArtefactError` and `NoStore`."""
    from service.serving.predictor import load

    with versions_of(settings) as known:
        known.registry.get(version)
        folder = known.registry.fetch(version)
    serve = settings.serve
    wanted = LiveVersion(version, str(folder))
    trusted, name = settings.security.trusted, settings.model.name
    return Offline(load(name, wanted, serve.max_records, trusted, (), serve.max_category_chars, serve.engine))


def print_scored(done: Scored, as_json: bool) -> None:
    """The summary of a run."""
    if as_json:
        show.print_json(
            {
                "out": str(done.out),
                "run": done.run,
                "rows": done.rows,
                "rows_before": done.before,
                "refused": done.refused,
                "refused_file": None if done.refused_file is None else str(done.refused_file),
                "versions": {str(version): rows for version, rows in done.versions.items()},
                "seconds": done.seconds,
                "rows_per_second": round(done.rows_per_second, 1),
            }
        )
        return
    before = f", {done.before:,} of them before it was interrupted" if done.before else ""
    lines = [
        ("rows", f"{done.rows:,}{before}"),
        ("refused", f"{done.refused:,}" + (f", listed in {done.refused_file}" if done.refused_file else "")),
        ("versions", ", ".join(f"{version} ({rows:,} rows)" for version, rows in done.versions.items()) or "none"),
        ("took", f"{done.seconds:.1f} s, {done.rows_per_second:,.0f} rows/s"),
        *([("run", done.run)] if done.run else []),
        ("output", str(done.out)),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
