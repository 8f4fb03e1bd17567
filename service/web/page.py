"""What stands behind the page of one server: its store, two threads, and what was answered lately.

What reads the store or computes runs in one of `THREADS` threads, an answer is made once for all who ask while nothing
has changed, and whoever comes when too many wait is told to come again. It is the controller's (`desk.py`), so that
predictions wait for none of this; a worker has one while the controller is away (`relay.py`).
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from service.serving.management.deployment import managed
from service.serving.request import Reject
from service.web.frames import Made, etag_of
from service.web.meter import Meter
from service.web.references import References
from service.web.revision import Signature, signature
from service.web.state import delays

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import Settings
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


class Page:
    """The page of one server. Used from one event loop; only `compute` runs elsewhere."""

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self.here = managed(settings, run_dir)
        self.meter = Meter(self.here.metrics_dir)
        self.references = References()
        self.seen = Signature()
        self.revision = ""
        self.looked_at = float("-inf")
        self._delays: tuple[float, DelayHistogram | None] = (float("-inf"), None)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="evergreen-page")
        self._waiting = 0
        self._answers: OrderedDict[tuple[str, ...], asyncio.Task[tuple[Made, float]]] = OrderedDict()
        self._look: asyncio.Task[Signature] | None = None
        weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)

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
        self.looked_at = began
        if self.revision != self.seen.revision:
            self.revision = self.seen.revision
            self._answers.clear()
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

        `known` is the revision that whoever asks was told. Where it is another than this one, somebody else may have
        seen a change that was not looked for here yet: it looks again.
        """
        await self.look()
        if known not in ("", self.revision):
            await self.look(BEHIND_S)
        task = self._answers.get(key)
        if task is not None:
            made, at = await asyncio.shield(task)
            if time.monotonic() - at < lasts_s:
                return made
            if (again := self._answers.get(key)) is not None and again is not task:  # another asked meanwhile
                return (await asyncio.shield(again))[0]
        task = self._answers[key] = asyncio.create_task(self.compute(_made, work))
        self._answers.move_to_end(key)
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        try:
            return (await asyncio.shield(task))[0]
        except Exception:
            if self._answers.get(key) is task:
                del self._answers[key]
            raise


def _made(work: Callable[[], msgspec.Struct]) -> tuple[Made, float]:
    """What was made, and when (time.monotonic())."""
    body = msgspec.json.encode(work())
    return Made(body, etag_of(body)), time.monotonic()
