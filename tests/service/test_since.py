from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.command.since import since

NOW = datetime(2026, 11, 27, 10, 0).timestamp()  # of this machine


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - 90),
        ("30m", NOW - 1800),
        ("2h", NOW - 7200),
        ("1.5d", NOW - 129_600),
        ("1w", NOW - 604_800),
        ("09:10", datetime(2026, 11, 27, 9, 10).timestamp()),
        ("22:54", datetime(2026, 11, 26, 22, 54).timestamp()),
        ("9:10:30", datetime(2026, 11, 27, 9, 10, 30).timestamp()),
        ("2026-11-26", datetime(2026, 11, 26).timestamp()),
        ("2026-11-26 08:30", datetime(2026, 11, 26, 8, 30).timestamp()),
        ("2026-11-26T08:30:00+00:00", datetime(2026, 11, 26, 8, 30, tzinfo=UTC).timestamp()),
        ("1764000000", 1_764_000_000.0),
    ],
)
def test_a_moment_is_read_as_people_type_it(text: str, expected: float) -> None:
    assert since(text, NOW) == expected


@pytest.mark.parametrize("text", ["yesterday", "2x", "25:00", "h", "-2h", "12"])
def test_anything_else_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        since(text, NOW)
