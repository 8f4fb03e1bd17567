"""`/page/events`: what has changed, told to every open page of this server; one look at the store serves them all."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa

from monitoring.errors import first_line
from service.serving.request import Reject
from service.web.frames import Said, line
from service.web.meter import EVERY_S
from service.web.shapes import Changed

if TYPE_CHECKING:
    from service.web.page import Page

logger = logging.getLogger("evergreen.page")

MOST_STREAMS: Final = 40
"""Of one server; whoever comes then polls."""
LOOK_EVERY_S: Final = 1.0
KEEP_ALIVE_S: Final = 15.0
APART_S: Final = 0.05
"""Between two listeners that are told the same: what they then ask for comes one page after the other."""
SPREAD_S: Final = 0.5
"""From the first to the last of them, at most."""
STATE_EVERY_S: Final = 15.0
"""How often the state is told to have changed although the store has not: the record's lag, say."""


class Events:
    """The streams of one server. One task looks at the store while there is a stream, and none otherwise."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._listeners: set[asyncio.Queue[Changed]] = set()
        self._looking: asyncio.Task[None] | None = None

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write events until the reader ends, which is when nobody listens any more.

        Raises `Reject` when there are `MOST_STREAMS` already, and OSError.
        """
        if len(self._listeners) >= MOST_STREAMS:
            raise Reject(503, f"{MOST_STREAMS} pages listen to this server already: poll /page/state instead", 5)
        mine: asyncio.Queue[Changed] = asyncio.Queue(8)
        self._listeners.add(mine)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        left = asyncio.create_task(reader.read())
        try:
            with suppress(sa.exc.SQLAlchemyError):
                await self._page.look()
            text = line(Said()) + b"retry: 2000\n\n" + _event(Changed(topics=(), revision=self._page.revision))
            said = time.monotonic()
            while not left.done():
                if text:
                    writer.write(text)
                    await writer.drain()
                    said = time.monotonic()
                try:
                    text = _event(await asyncio.wait_for(mine.get(), LOOK_EVERY_S))
                except TimeoutError:
                    text = b": still here\n\n" if time.monotonic() - said >= KEEP_ALIVE_S else b""
        finally:
            self._listeners.discard(mine)
            left.cancel()

    async def _look(self) -> None:
        """Look at the store once a second while anybody listens, and tell what has changed."""
        page, before = self._page, self._page.seen
        measured = told = 0.0
        failing = False
        while self._listeners:
            began = time.monotonic()
            topics: tuple[str, ...] = ()
            try:
                seen = await page.look(LOOK_EVERY_S / 2)
                topics, before, failing = seen.topics(before), seen, False
            except (sa.exc.SQLAlchemyError, Reject) as error:
                if not failing:
                    logger.warning("what has changed is not known: %s", first_line(error))
                failing = True
            if began - measured >= EVERY_S:
                with suppress(Reject, OSError):
                    await page.compute(page.meter.look)
                topics, measured = (*topics, "traffic"), began
            if began - told >= STATE_EVERY_S:
                topics, told = (*topics, "state"), began
            if topics:
                self._tell(Changed(topics=tuple(dict.fromkeys(topics)), revision=page.revision))
            await asyncio.sleep(max(0.05, LOOK_EVERY_S - (time.monotonic() - began)))

    def _tell(self, changed: Changed) -> None:
        loop = asyncio.get_running_loop()
        apart = min(APART_S, SPREAD_S / len(self._listeners))
        for place, queue in enumerate(self._listeners):
            loop.call_later(place * apart, _put, queue, changed)


def _put(queue: asyncio.Queue[Changed], changed: Changed) -> None:
    try:
        queue.put_nowait(changed)
    except asyncio.QueueFull:  # a client that does not read: it asks for everything when it does
        logger.debug("a page does not read its events")


def _event(changed: Changed) -> bytes:
    return b"event: changed\ndata: " + msgspec.json.encode(changed) + b"\n\n"
