"""When a thing was in the store, and when a person could see it: two clocks of one machine, side by side."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOOK_EVERY_S = 0.05

WATCH = """
() => {
  window.seen = {};
  const look = () => {
    const now = Date.now() / 1000;
    const add = (key) => (window.seen[key] ??= now);
    for (const line of document.querySelectorAll(".decision")) {
      const run = line.querySelector("a.decision-text").dataset.key.slice(4);
      add(`run ${run}`);
      for (const one of line.classList) if (one.startsWith("is-")) add(`run ${run} ${one.slice(3)}`);
    }
    for (const cell of document.querySelectorAll(".cell")) {
      const check = cell.title.match(/check (\\d+)/)[1];
      add(`check ${check}`);
      if (cell.title.endsWith("began here")) add(`news ${check}`);
    }
    const version = document.querySelector(".over b")?.textContent;
    if (version) add(`version ${version}`);
  };
  new MutationObserver(look).observe(document.querySelector("main"), {childList: true, subtree: true, attributes: true, characterData: true});
  look();
}
"""  # noqa: E501
SHAPES = {"promoted": "promotion", "kept": "refusal", "refused": "refusal", "rolled_back": "rollback"}


def watch(page: Page) -> None:
    """From now on the page notes when each thing is in it for the first time."""
    page.evaluate(WATCH)


def seen(page: Page) -> dict[str, float]:
    """What was seen so far, by the names that `Store.found` has too."""
    found: dict[str, float] = page.evaluate("() => window.seen")
    return found


class Store(threading.Thread):
    """Reads the store's file again and again, and notes when each thing is there for the first time."""

    def __init__(self, database: Path) -> None:
        super().__init__(name="store", daemon=True)
        self.database = database
        self.found: dict[str, float] = {}
        self.runs: dict[int, dict[str, Any]] = {}
        self.trouble: Exception | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
                connection.row_factory = sqlite3.Row
                while not self._ended.wait(LOOK_EVERY_S):
                    self._look(connection)
        except Exception as error:  # told by `close`
            self.trouble = error

    def _look(self, connection: sqlite3.Connection) -> None:
        # While a training goes on, many checks may come and go.
        newest = "kind != 'check' or id > (select max(id) - 10 from runs) order by id desc limit 20"
        wanted = f"select id, kind, trigger, state, outcome, version, why from runs where {newest}"
        for run in map(dict, connection.execute(wanted)):
            self.runs[run["id"]] = run
            name = f"run {run['id']}"
            self._add(name)
            if run["state"] in ("queued", "running"):
                self._add(f"{name} running")
            elif run["outcome"] in SHAPES:
                self._add(f"{name} {SHAPES[run['outcome']]}")
                if run["outcome"] == "promoted":
                    self._add(f"version {run['version']}")
        for number, drift in connection.execute("select id, drift from checks order by id desc limit 1"):
            if f"check {number}" in self.found:
                continue
            self._add(f"check {number}")
            if any(finding["state"] == "began" for finding in json.loads(drift or "{}").get("findings", ())):
                self._add(f"news {number}")

    def _add(self, name: str) -> None:
        self.found.setdefault(name, time.time())

    def newest(self, what: str, but: frozenset[str] = frozenset()) -> str | None:
        """The newest thing found whose name begins or ends with `what`."""
        names = [n for n in list(self.found) if n not in but and (n.startswith(f"{what} ") or n.endswith(f" {what}"))]
        return names[-1] if names else None

    def close(self) -> None:
        self._ended.set()
        self.join(timeout=30)
        if self.trouble is not None:
            raise self.trouble
