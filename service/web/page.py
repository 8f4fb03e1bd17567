"""What stands behind the page in one worker: its store, its two threads, what was answered lately, and who listens.

The page never slows predictions: what reads the store or computes runs in one of `THREADS` threads, an answer is made
once for all who ask while nothing has changed, and whoever comes when too many wait is told to come again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from service.serving.management.deployment import managed
from service.serving.request import Reject
from service.web.meter import Meter
from service.web.references import References
from service.web.revision import Signature, signature
from service.web.state import delays

if TYPE_CHECKING:
    from service.serving.management.deployment import Managed
    from service.serving.worker import Worker
    from service.web.shapes import DelayHistogram

_Result = TypeVar("_Result")

THREADS: Final = 2
MOST_WAITING: Final = 32
"""Requests that wait for a thread; more are refused."""
BEHIND_S: Final = 0.1
"""How old a look at the store may be for who has heard of another revision."""
KEPT: Final = 64
"""Answers kept."""
DELAYS_LAST_S: Final = 30.0
LOOK_EVERY_S: Final = 1.0
"""How old what is known of the store may be."""
READS_TOO_MUCH: Final = "the page has more to read than it can just now; try again"

_pages: dict[Worker, asyncio.Task[Page]] = {}
"""One: a process has one worker."""


class Made(NamedTuple):
    """An answer as it was made."""

    value: msgspec.Struct
    body: bytes
    etag: bytes
    at: float
    """time.monotonic()"""


class Page:
    """The page of one worker. Used from its event loop; only `compute` runs elsewhere."""

    def __init__(self, here: Managed) -> None:
        self.here = here
        self.meter = Meter(here.worker.metrics.directory)
        self.references = References()
        self.seen = Signature()
        self.revision = ""
        self.looked_at = float("-inf")
        self._delays: tuple[float, DelayHistogram | None] = (float("-inf"), None)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="evergreen-page")
        self._waiting = 0
        self._answers: OrderedDict[tuple[str, ...], tuple[str, asyncio.Task[Made]]] = OrderedDict()
        self._look: asyncio.Task[Signature] | None = None
        self._one_a_turn = asyncio.Lock()
        weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)

    async def turn(self) -> None:
        """Wait for a turn of the event loop in which no other request of the page goes on.

        Ten pages that hear of a check ask for seventy answers at once: predictions come in between.
        """
        async with self._one_a_turn:
            await asyncio.sleep(0)

    async def compute(self, work: Callable[..., _Result], *args: Any) -> _Result:
        """The result of `work(*args)`, from one of the page's threads. Raises `Reject` when too many wait for one."""
        if self._waiting >= MOST_WAITING:
            raise Reject(503, READS_TOO_MUCH, 2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        finally:
            self._waiting -= 1

    async def look(self, within_s: float = LOOK_EVERY_S) -> Signature:
        """What the store looked like at most `within_s` ago."""
        if time.monotonic() - self.looked_at >= within_s:
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._looked())
            await asyncio.shield(self._look)
        return self.seen

    async def _looked(self) -> Signature:
        began = time.monotonic()
        self.seen = await self.compute(signature, self.here.engine)
        self.revision, self.looked_at = self.seen.revision, began
        return self.seen

    def delays(self) -> DelayHistogram | None:
        """How long labels take, as of at most half a minute ago; asked in one of the page's threads."""
        if time.monotonic() - self._delays[0] >= DELAYS_LAST_S:
            self._delays = time.monotonic(), delays(self.here)
        return self._delays[1]

    async def answer(
        self, key: tuple[str, ...], lasts_s: float, work: Callable[[], msgspec.Struct], known: str = ""
    ) -> Made:
        """The answer under this key: the one made before while the store is as it was and it is young enough.

        `known` is the revision that whoever asks was told. Where it is another than this worker's, another worker may
        have seen a change that this one has not looked for yet: it looks again.
        """
        await self.look()
        if known not in ("", self.revision):
            await self.look(BEHIND_S)
        revision, task = self._answers.get(key, ("", None))
        if task is not None and revision == self.revision:
            made = await asyncio.shield(task)
            if time.monotonic() - made.at < lasts_s:
                self._answers.move_to_end(key)
                return made
            if (again := self._answers.get(key)) is not None and again[1] is not task:  # another asked meanwhile
                return await asyncio.shield(again[1])
        task = asyncio.create_task(self._make(work))
        self._answers[key] = self.revision, task
        self._answers.move_to_end(key)
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except Exception:
            if self._answers.get(key, ("", None))[1] is task:
                del self._answers[key]
            raise

    async def _make(self, work: Callable[[], msgspec.Struct]) -> Made:
        return await self.compute(_made, work)


def _made(work: Callable[[], msgspec.Struct]) -> Made:
    value = work()
    body = msgspec.json.encode(value)
    return Made(value, body, etag_of(body), time.monotonic())


def etag_of(body: bytes) -> bytes:
    return b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()


async def page_of(worker: Worker) -> Page:
    """The page of this worker; what it needs is imported in a thread, at the first request."""
    task = _pages.get(worker)
    if task is None or (task.done() and task.exception() is not None):
        _pages.clear()
        task = _pages[worker] = asyncio.create_task(asyncio.to_thread(lambda: Page(managed(worker))))
    return await asyncio.shield(task)
