"""A file scored by a client: by `AsyncClient` as it is, by `Client` in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from evergreen_client.answers import Wanted
from evergreen_client.calls import Call
from evergreen_client.files.answering import Caller, Service
from evergreen_client.files.reading import Dialect, open_table
from evergreen_client.files.scoring import Asked, Progress, Scored, score

T = TypeVar("T")


class Waiting(Protocol):
    """What is needed of a `Client`."""

    url: str

    def wanted(self) -> Wanted: ...
    def _do(self, call: Call[T]) -> T: ...


async def answered(
    client: Caller, source: str, asked: Asked, dialect: Dialect | None, on_progress: Callable[[Progress], None] | None
) -> Scored:
    """What `AsyncClient.predict_file` gives."""
    table = await asyncio.to_thread(open_table, source, dialect)
    return await score(table, Service(client, record=asked.record), asked, on_progress)


def answered_in_threads(
    client: Waiting, source: str, asked: Asked, dialect: Dialect | None, on_progress: Callable[[Progress], None] | None
) -> Scored:
    """What `Client.predict_file` gives. Not to be called where an event loop runs."""
    with ThreadPoolExecutor(asked.connections, thread_name_prefix="evergreen-client") as threads:
        return asyncio.run(answered(_InThreads(client, threads), source, asked, dialect, on_progress))


class _InThreads:
    """A `Client` as an `AsyncClient`."""

    def __init__(self, client: Waiting, threads: ThreadPoolExecutor) -> None:
        self.url = client.url
        self._client, self._threads = client, threads

    async def wanted(self) -> Wanted:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._client.wanted)

    async def _do(self, call: Call[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._client._do(call))
