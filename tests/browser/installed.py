"""Evergreen as a stranger has it: the server and the command of an installed wheel, in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.real_server import Server

SETTINGS = {
    "SERVE__WORKERS": "2",
    "SCHEDULE__CHECK_INTERVAL_S": "3",
    "DRIFT__WINDOW_ROWS": "750",
    "QUALITY__WINDOW_ROWS": "750",
    "QUALITY__JUDGED_ROWS": "2000",
    "RETRAIN__COOLDOWN_S": "8",
    "RETRAIN__GROWTH": "20",
    "RETRAIN__GROWTH_IF_LOST": "1.4",
    "TRAINING__TRIALS": "2",
}
"""A check every 3 s and not every minute, and a training soon after the world changed, much as `evergreen demo` has
it; none for growth alone, which would take the cores from the browser. A check judges by 2,000 rows at most: with the
default of 20,000 its memory would grow for minutes."""


class Installed(Server):
    """`evergreen serve` of the wheel, and its other commands against it."""

    def __init__(self, evergreen: Path, home: Path) -> None:
        super().__init__(home, **SETTINGS)
        self.command = (str(evergreen),)
        self.cwd = home
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            self.env.pop(name, None)
        self._background: list[subprocess.Popen[str]] = []

    @property
    def token(self) -> str:
        return (self.home / "var" / "token").read_text().strip()

    def run(self, *arguments: str, code: int = 0) -> str:
        """What `evergreen ARGUMENTS` prints; an AssertionError when it ends with another code."""
        done = subprocess.run(
            [*self.command, *arguments], cwd=self.home, env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, f"evergreen {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def traffic(self, *arguments: str) -> subprocess.Popen[str]:
        """`evergreen traffic ARGUMENTS`, at work until it is over or `end` is called."""
        process = subprocess.Popen(
            [*self.command, "traffic", "--retry", "20", "--json", *arguments],
            cwd=self.home,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._background.append(process)
        return process

    def end(self) -> None:
        for process in self._background:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()
        super().end()

    def get(self, path: str) -> Any:
        """The parsed answer of the API."""
        headers = {"authorization": f"Bearer {self.token}"}
        answer = httpx.get(self.url + path, headers=headers, timeout=30, trust_env=False)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()
