"""What a job did when: its steps, for the log and for traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec


class Phase(msgspec.Struct, frozen=True):
    """A step of a job; times in seconds since 1970 UTC."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


_passed: list[Phase] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """The block is a step of the job that this process does."""
    began, clock = time.time(), time.perf_counter()
    yield
    _passed.append(Phase(name, began, began + time.perf_counter() - clock))


def begin_job() -> None:
    """Forget the steps of a job before."""
    _passed.clear()


def passed() -> tuple[Phase, ...]:
    """The steps that are over, in order."""
    return tuple(_passed)
