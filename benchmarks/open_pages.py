"""Ten people who look at the page: each keeps its line of events, and reads again what changed, as the page does.

Without the browsers, which would take the processors of the machine that serves: theirs are elsewhere. For the same
reason this process gives way to every other.
`python -m benchmarks.open_pages URL COUNT`, with a token in EVERGREEN_TOKEN, says `open` when every line is up, and how
many requests were answered when its input ends.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Final

import httpx
import msgspec

from service.web.shapes import Changed
from tests.real_server import Server

TOPICS: Final = ("state", "quality", "decisions", "drift", "distribution", "segments", "traffic")
"""The parts of the overview: each is told as a topic and read at `/page/<topic>`."""


class OpenPages:
    """So many pages in a process of their own; each on a connection of its own, as browsers have them."""

    def __init__(self, server: Server, count: int) -> None:
        self.server, self.count = server, count
        self.outcomes: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Return when every page shows everything and hears what changes. Raises `RuntimeError`."""
        token = (self.server.home / "var" / "token").read_text().strip()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.open_pages", self.server.url, str(self.count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "EVERGREEN_TOKEN": token},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "open":
            raise RuntimeError("the pages did not open; what they complained of stands above")

    def busy(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Close them. Raises `RuntimeError` when one had a request that failed."""
        assert self._process is not None
        told, _ = self._process.communicate("", timeout=60)
        if self._process.returncode:
            raise RuntimeError("a page had trouble; what it was stands above")
        self.outcomes.append(f"{int(told):,} requests of the pages")


class _Page:
    def __init__(self, url: str, token: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30)
        self.opened = asyncio.Event()
        self.requests = 0

    async def look(self) -> None:
        async with self.client.stream("GET", "/page/events", timeout=None) as line:
            line.raise_for_status()
            async for text in line.aiter_lines():
                if text.startswith("data: "):
                    topics = msgspec.json.decode(text.removeprefix("data: "), type=Changed).topics
                    # The first event of a line names no topic: everything is read.
                    await asyncio.gather(*(self._read(topic) for topic in TOPICS if not topics or topic in topics))
                    self.opened.set()
        raise RuntimeError("the server ended a line of events")

    async def _read(self, topic: str) -> None:
        try:
            answer = await self.client.get(f"/page/{topic}")
        except httpx.RemoteProtocolError:  # the server closed an idle connection just then: browsers ask again
            answer = await self.client.get(f"/page/{topic}")
        answer.raise_for_status()
        self.requests += 1


async def main(url: str, count: int) -> None:
    pages = [_Page(url, os.environ["EVERGREEN_TOKEN"]) for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        looking = [group.create_task(page.look()) for page in pages]
        for page in pages:
            await page.opened.wait()
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for one in looking:
            one.cancel()
    print(sum(page.requests for page in pages), flush=True)


if __name__ == "__main__":
    os.nice(19)  # people's browsers are on other machines: what they cost must not be taken from the server's
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
