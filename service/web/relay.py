"""The page as a worker has it: it knows who asks, and hands on what the controller answers.

So a part is made once for all workers of a server, in a process that answers no predictions. While the controller is
away, being started again, say, the worker makes the parts itself, and events are refused: the page asks every five
seconds until it hears again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from service.serving.request import Reject
from service.web.frames import EVENTS, Asking, Made, Said, line, reached

if TYPE_CHECKING:
    from pathlib import Path

    from service.serving.asgi import Receive, Send
    from service.settings import Settings
    from service.web.page import Page

logger = logging.getLogger("evergreen.page")

WITHIN_S: Final = 20.0
"""A controller that has not answered by then hangs."""
NOT_ASKED_S: Final = 30.0
"""For how long one that hangs is not asked again."""
LOOK_EVERY_S: Final = 1.0
"""How often a stream sees whether it may go on."""
AT_ONCE: Final = 2**18
"""Bytes that are read at once."""
_NO_ANSWER: Final = (OSError, EOFError, msgspec.DecodeError)
NO_EVENTS: Final = "the controller, which tells what changes, does not answer: poll /page/state instead"


class Relay:
    """The page of one worker. Used from its event loop.

    Args:
        settings: of this deployment.
        run_dir: folder of this server.
    """

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self._settings, self._run_dir = settings, run_dir
        self._one_a_turn = asyncio.Lock()
        self._ask_from = float("-inf")  # time.monotonic()
        self._away = False
        self._own: asyncio.Task[Page] | None = None

    async def part(self, asked: Asking) -> Made:
        """What is asked for, the controller's or our own. Raises `Reject`."""
        async with self._one_a_turn:  # seventy may come at once: each has a turn of the loop, predictions come between
            await asyncio.sleep(0)
        if time.monotonic() >= self._ask_from:
            try:
                said, reader, writer = await self._answer(asked)
                with closing(writer):
                    return Made(await asyncio.wait_for(reader.readexactly(said.length or 0), WITHIN_S), said.etag)
            except TimeoutError:
                self._ask_from = time.monotonic() + NOT_ASKED_S
                self._miss(f"it has said nothing for {WITHIN_S:.0f} s")
            except _NO_ANSWER as error:
                self._miss(str(error))
        return await self._made_here(asked)

    async def stream(self, receive: Receive, send: Send, good: Callable[[], bool]) -> None:
        """Answer a request with events until the client leaves, `good` says no or the controller ends.

        Raises `Reject` when there are none.
        """
        try:
            _, reader, writer = await self._answer(Asking(EVENTS))
        except _NO_ANSWER:
            raise Reject(503, NO_EVENTS, 5) from None
        with closing(writer):
            await _hand_on(reader, receive, send, good)

    async def _answer(self, asked: Asking) -> tuple[Said, asyncio.StreamReader, asyncio.StreamWriter]:
        """What the controller says, and where the rest is read. Raises `Reject`; `_NO_ANSWER` when it says nothing."""
        with reached(self._run_dir) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=AT_ONCE)
        try:
            writer.write(line(asked))
            said = msgspec.json.decode(await asyncio.wait_for(reader.readline(), WITHIN_S), type=Said)
            if self._away:
                logger.info("the controller makes the page's answers again")
                self._away, self._own = False, None
            if said.status != 200:
                raise Reject(said.status, said.message, said.retry_after_s)
        except BaseException:
            writer.close()
            raise
        return said, reader, writer

    def _miss(self, why: str) -> None:
        if not self._away:
            logger.warning("the controller does not make the page's answers (%s): this worker does", why)
        self._away = True

    async def _made_here(self, asked: Asking) -> Made:
        if self._own is None or (self._own.done() and self._own.exception() is not None):
            self._own = asyncio.create_task(asyncio.to_thread(self._opened))
        page = await asyncio.shield(self._own)
        from service.web.parts import part

        return await part(page, asked)

    def _opened(self) -> Page:
        from service.web.page import Page
        from service.web.parts import part  # noqa: F401

        return Page(self._settings, self._run_dir)


async def _hand_on(reader: asyncio.StreamReader, receive: Receive, send: Send, good: Callable[[], bool]) -> None:
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    left = asyncio.create_task(_left(receive))
    text = b" "
    try:
        while text and good() and not left.done():
            try:
                text = await asyncio.wait_for(reader.read(AT_ONCE), LOOK_EVERY_S)
            except TimeoutError:
                continue
            except ConnectionError:  # the controller was killed
                break
            if text:
                await send({"type": "http.response.body", "body": text, "more_body": True})
        if not left.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        left.cancel()


async def _left(receive: Receive) -> Any:
    while (await receive())["type"] != "http.disconnect":
        pass
