"""The page as the controller has it: for all workers of the server it makes every part once, and tells what changes."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from service.serving.request import Reject
from service.web.events import Events
from service.web.frames import EVENTS, SOCKET, Asking, Said, line, reached
from service.web.page import Page
from service.web.parts import part

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import Settings

logger = logging.getLogger("evergreen.page")

LOOK_EVERY_S: Final = 0.2


async def serve(settings: Settings, run_dir: Path, stopping: threading.Event) -> None:
    """Answer the workers of the server in this folder until it stops."""
    page = Page(settings, run_dir)
    events = Events(page)

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = msgspec.json.decode(await reader.readline(), type=Asking)
            if asked.path == EVENTS:
                await events.stream(reader, writer)
            else:
                made = await part(page, asked)
                await _say(writer, Said(length=len(made.body), etag=made.etag), made.body)
        except Reject as error:
            await _say(writer, Said(error.status, message=error.message, retry_after_s=error.retry_after_s))
        except (ConnectionError, msgspec.DecodeError, asyncio.CancelledError):  # asyncio would tell of the last one
            logger.debug("a worker left before it was answered, or the server stops")
        except Exception:
            logger.exception("a part of the page could not be made")
            await _say(writer, Said(500, message="an error of ours; the controller's log has the details"))
        finally:
            writer.close()

    try:
        door = _door(run_dir)
    except OSError as error:
        logger.warning("no socket can be made in %s (%s): each worker makes its page", run_dir, error)
        return
    server = await asyncio.start_unix_server(met, sock=door)
    while not stopping.is_set():
        await asyncio.sleep(LOOK_EVERY_S)
    server.close()  # streams end with the loop


async def _say(writer: asyncio.StreamWriter, said: Said, body: bytes = b"") -> None:
    writer.write(line(said) + body)
    await writer.drain()


def _door(run_dir: Path) -> socket.socket:
    """A socket that its owner alone can reach; one that a controller before left makes way. Raises OSError."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / SOCKET).unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reached(run_dir) as path:
            door.bind(path)
        (run_dir / SOCKET).chmod(0o600)  # before anybody can be let in
        door.listen(256)
    except OSError:
        door.close()
        raise
    return door
