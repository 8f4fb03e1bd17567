"""Lines of the log: JSON or for people, equal ones counted, and of an exception no words that may hold a value."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from monitoring.drain import DrainFailed
from monitoring.errors import EvergreenError
from monitoring.messages import OURS, THEIRS, HumanLines, JsonLines, Limit, LoggingPolicy, configure, said
from tests.real_server import wait_until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, *OURS, *THEIRS)]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in loggers]
    yield
    logging.captureWarnings(False)
    for one, level, propagate, handlers in before:
        one.setLevel(level)
        one.propagate = propagate
        one.handlers[:] = handlers


def heard(formatter: logging.Formatter, *, window_s: float = 60.0) -> tuple[logging.Logger, io.StringIO, Limit]:
    """A logger of its own that writes with this formatter and the limit."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    limit = Limit(handler, window_s=window_s)
    handler.addFilter(limit)
    logger = logging.Logger("evergreen.test")
    logger.addHandler(handler)
    return logger, stream, limit


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_says_when_who_and_what_with_numbers_as_fields() -> None:
    logger, stream, _ = heard(JsonLines("controller"))

    logger.info("run %d ended", 7, extra={"event": "promotion", "run": 7, "version": 3, "seconds": 1.5, "rows": None})

    (line,) = lines(stream)
    assert time.time() - 60 < time.mktime(time.strptime(line.pop("at"), "%Y-%m-%dT%H:%M:%S.%fZ")) - time.timezone
    assert line == {
        "level": "info",
        "process": "controller",
        "logger": "evergreen.test",
        "message": "run 7 ended",
        "event": "promotion",
        "run": 7,
        "version": 3,
        "seconds": 1.5,
    }


def test_a_line_for_people_has_the_same_on_one_line() -> None:
    logger, stream, _ = heard(HumanLines("api-1"))

    logger.info("serving %s", "evergreen:3", extra={"event": "swap", "version": 3, "share": 0.123456})

    assert stream.getvalue()[9:] == "info    api-1        serving evergreen:3 version=3 share=0.1235\n"


@pytest.mark.parametrize(("given", "stream", "chosen"), [
    ("auto", io.StringIO(), "json"), ("auto", Terminal(), "human"), ("human", io.StringIO(), "human"),
    ("json", Terminal(), "json"),
])  # fmt: skip
@pytest.mark.usefixtures("logging_as_before")
def test_auto_is_for_people_on_a_terminal_and_json_elsewhere(given: Any, stream: io.StringIO, chosen: str) -> None:
    assert configure(LoggingPolicy(format=given), "serve", stream) == chosen

    logging.getLogger("evergreen.x").info("hello")
    assert stream.getvalue().startswith("{") == (chosen == "json")


@pytest.mark.usefixtures("logging_as_before")
def test_the_level_holds_for_us_and_the_libraries_say_warnings_only_through_the_same_lines() -> None:
    stream = io.StringIO()
    for name in THEIRS:
        logging.getLogger(name).addHandler(logging.StreamHandler(io.StringIO()))
        logging.getLogger(name).setLevel(logging.NOTSET)  # a server that another test started in this process set it
    configure(LoggingPolicy(level="debug"), "serve", io.StringIO())

    configure(LoggingPolicy(level="warning"), "serve", stream)  # the last call counts
    for name in ("evergreen.loop", "training.cycle", "uvicorn.error", "sqlalchemy"):
        logging.getLogger(name).info("not written")
        logging.getLogger(name).warning("written")

    found = [(line["logger"], line["message"]) for line in lines(stream)]
    assert found == [(n, "written") for n in ("evergreen.loop", "training.cycle", "uvicorn.error", "sqlalchemy")]


def test_of_equal_messages_five_stand_in_the_log_and_the_others_are_counted() -> None:
    logger, stream, limit = heard(JsonLines("api-1"))

    for number in range(42):
        logger.warning("request %d failed", number)
        logger.warning("another trouble") if number == 0 else None
    limit.flush()

    found = [line["message"] for line in lines(stream)]
    assert found[:2] == ["request 0 failed", "another trouble"]
    assert found[-1] == "… 37 more of these in the last 60 s: request 41 failed" and len(found) == 7
    assert lines(stream)[-1]["times"] == 37 and lines(stream)[-1]["event"] == "repeated"


def test_what_was_left_out_is_said_when_the_time_is_over_though_nothing_follows() -> None:
    logger, stream, _ = heard(JsonLines("api-1"), window_s=2.0)
    for _ in range(9):
        logger.error("broken")

    wait_until("the count", lambda: "4 more of these" in stream.getvalue())
    logger.error("broken")
    assert [line["message"] for line in lines(stream)].count("broken") == 6, "a new minute shows them again"


def test_lines_about_what_happened_are_all_written() -> None:
    logger, stream, _ = heard(JsonLines("controller"))

    for number in range(20):
        logger.info("check %d", number, extra={"event": "check"})

    assert len(lines(stream)) == 20


def test_thousands_of_different_messages_are_counted_without_growing() -> None:
    logger, stream, limit = heard(JsonLines("api-1"))

    for number in range(3_000):
        logger.warning("%s", f"{number} is another wording")
    limit.flush()

    assert len(lines(stream)) < 520 and len(limit._seen) <= 501


def raised() -> BaseException:
    """An error as a library may raise it: with the value it fell over, and one behind it."""
    try:
        try:
            int("CANARY-1")
        except ValueError as error:
            raise KeyError("CANARY-2") from error
    except KeyError as error:
        return error


@pytest.mark.parametrize("formatter", [JsonLines("api-1"), HumanLines("api-1")])
def test_an_exception_is_its_class_and_its_places_without_its_words(formatter: logging.Formatter) -> None:
    logger, stream, _ = heard(formatter)

    logger.error("unexpected error", exc_info=raised())

    text = stream.getvalue()
    assert "CANARY" not in text
    assert "KeyError" in text and "from ValueError" in text and "tests/monitoring/test_messages.py:" in text


@pytest.mark.parametrize(("error", "words"), [
    (ValueError("CANARY"), "ValueError"),
    (FileNotFoundError(2, "No such file", "/var/x"), "FileNotFoundError: [Errno 2] No such file: '/var/x'"),
    (EvergreenError('records[3].age: no number, got "CANARY"'), "EvergreenError: records[].age: no number"),
    (sa.exc.IntegrityError("insert …", {"features": "CANARY"}, Exception("duplicate key\nDETAIL: (CANARY)")),
     "IntegrityError: duplicate key"),
    (DrainFailed(sa.exc.DataError("insert …", ["CANARY"], Exception("bad text\nCONTEXT: COPY predictions, CANARY"))),
     "DrainFailed: the store cannot take the record now (bad text); the spool keeps it until the next drain"),
])  # fmt: skip
def test_words_of_an_exception_are_said_when_they_hold_no_value(error: Exception, words: str) -> None:
    assert said(error) == words
