"""What a process says to its log: one line a message, as JSON or for people, and never a value out of a row.

A message is `logger.info("...", extra={"event": "check", "run": 7})`: what is given as `extra` are fields of the line.
Messages without an `event` are those that can come a thousand times a second when something is broken: of equal ones
a few stand in the log and the others are counted.

An exception stands there as its class and where it was raised. Its words only when they cannot hold what a client sent:
those of the operating system and of the database.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from monitoring.errors import EvergreenError, first_line, without_values

SHOWN: Final = 5
"""Of equal messages, in `WINDOW_S`."""
WINDOW_S: Final = 60.0
MOST_KINDS: Final = 500
"""Different messages that are counted at a time; what comes beyond it counts as one kind."""

OURS: Final = ("evergreen", "service", "training", "monitoring")
THEIRS: Final = ("bentoml", "circus", "uvicorn.error")
"""Loggers for which BentoML installs handlers of its own."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SET_BY_BENTOML: Final = frozenset({"levelname_bracketed", "component", "trace_msg", "request_id", "service_name"})

Format = Literal["json", "human"]


class LoggingPolicy(BaseModel):
    """How a process writes what it has to say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["auto", "json", "human"] = Field(
        "auto", description="lines for people or one JSON object a line; auto: for people on a terminal, else JSON"
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is written; info has a line for each check, training, swap and refusal"
    )


def configure(policy: LoggingPolicy, process: str, stream: TextIO | None = None) -> Format:
    """Write what this process says to `stream` (stdout) from now on, under the name `process`; in which format.

    It takes the place of what BentoML has set up, so that its lines look the same. Calling it again is no trouble.
    """
    stream = sys.stdout if stream is None else stream
    chosen: Format = policy.format if policy.format != "auto" else "human" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(process) if chosen == "json" else HumanLines(process))
    limit = Limit(handler)
    handler.addFilter(limit)
    atexit.register(limit.flush)
    level = logging.getLevelNamesMapping()[policy.level.upper()]
    root = logging.getLogger()
    for other in list(root.handlers):
        if type(other) is logging.StreamHandler:  # files, and what tests listen with, stay
            root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    for name in THEIRS:
        theirs = logging.getLogger(name)
        theirs.handlers.clear()
        theirs.propagate = True
    logging.getLogger("bentoml").setLevel(max(level, logging.INFO))
    logging.captureWarnings(True)
    return chosen


# --- one line -----------------------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """A message as one JSON object: at, level, process, logger, message, then its fields, then the exception."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if (error := error_of(record)) is not None:
            line |= {"error": said(error), "trace": trace_of(error)}
        return msgspec.json.encode(line, enc_hook=str).decode()


class HumanLines(logging.Formatter):
    """A message as a person reads it: time, level, process, words, then the fields as `name=value`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        words = [f"{at} {record.levelname.lower():<7} {self._process:<12} {record.getMessage()}"]
        words += [f"{name}={_shown(value)}" for name, value in fields_of(record).items() if name != "event"]
        if (error := error_of(record)) is not None:
            words += ["|", said(error), *(f"\n    {place}" for place in trace_of(error))]
        return " ".join(words).replace(" \n", "\n")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`; fields that are None are left out."""
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and name not in _SET_BY_BENTOML and value is not None
    }


def error_of(record: logging.LogRecord) -> BaseException | None:
    """The exception that a message was given."""
    return record.exc_info[1] if record.exc_info else None


def said(error: BaseException) -> str:
    """An exception's class, and its words as far as they cannot hold a value out of a row."""
    name = type(error).__name__
    if isinstance(error, OSError) or hasattr(error, "orig"):  # SQLAlchemy's have the driver's error in `orig`
        return f"{name}: {first_line(error)}"
    if isinstance(error, EvergreenError):
        return f"{name}: {without_values(str(error))}"
    return name


def trace_of(error: BaseException) -> list[str]:
    """Where it was raised, the outermost call first, as `file:line function`; behind it what it came from."""
    places = []
    for frame in traceback.extract_tb(error.__traceback__):
        places.append(f"{_short_path(frame.filename)}:{frame.lineno} {frame.name}")
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and len(places) < 100:
        places += [f"from {said(before)}", *trace_of(before)[:50]]
    return places


def _short_path(path: str) -> str:
    return path.rpartition("site-packages/")[2].removeprefix(_HERE)


_HERE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


# --- many equal ones ----------------------------------------------------------------------------------------------


class Limit(logging.Filter):
    """Lets the first few of equal messages through; how many more there were is said once, when a minute is over.

    Equal are messages of one logger, level and wording: what was filled into the wording does not count.
    """

    def __init__(self, handler: logging.Handler, shown: int = SHOWN, window_s: float = WINDOW_S) -> None:
        super().__init__()
        self._handler, self._shown, self._window_s = handler, shown, window_s
        self._lock = threading.Lock()
        self._seen: dict[tuple[Any, ...], int] = {}
        self._last: dict[tuple[Any, ...], logging.LogRecord] = {}
        self._ends = 0.0
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "event"):
            return True
        words = record.msg if isinstance(record.msg, str) and record.msg != "%s" else record.getMessage()[:100]
        error = error_of(record)
        key: tuple[Any, ...] = (record.name, record.levelno, words, getattr(record, "status", None), type(error))
        now, over = time.monotonic(), []
        with self._lock:
            if now >= self._ends:
                over, self._ends = self._take(), now + self._window_s
            if key not in self._seen and len(self._seen) >= MOST_KINDS:
                key = ("others",)
            times = self._seen[key] = self._seen.get(key, 0) + 1
            passes = times <= self._shown
            if not passes:
                self._last[key] = record
                if self._timer is None:  # said even when no message follows
                    self._timer = threading.Timer(self._ends - now, self.flush)
                    self._timer.daemon = True
                    self._timer.start()
        self._say(over)
        return passes

    def flush(self) -> None:
        """Say now how many were left out."""
        with self._lock:
            over, self._ends = self._take(), 0.0
        self._say(over)

    def _take(self) -> list[tuple[int, logging.LogRecord]]:
        left_out = [(self._seen[key] - self._shown, record) for key, record in self._last.items()]
        self._seen, self._last = {}, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return left_out

    def _say(self, left_out: list[tuple[int, logging.LogRecord]]) -> None:
        for times, last in left_out:
            text = f"… {times} more of these in the last {self._window_s:.0f} s: {last.getMessage()}"
            line = logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, None, None)
            line.__dict__ |= {"event": "repeated", "times": times}
            self._handler.handle(line)
