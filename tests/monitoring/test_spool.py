from __future__ import annotations

import os
from pathlib import Path

from monitoring.spool import begin_segment, number_at, open_segment, owner_is_gone, segment_day, segment_path, segments


def test_segments_are_listed_by_their_birth_whatever_else_lies_there(tmp_path: Path) -> None:
    older, newer = number_at(1.0) | 7, number_at(2.0)
    for path in (segment_path(tmp_path, newer, ".seg"), segment_path(tmp_path, older, ".sealed")):
        path.touch()
    for name in ("drain.lock", "00000000000000aa.new", "notes.seg", "notes"):
        (tmp_path / name).touch()

    assert list(segments(tmp_path)) == [older, newer]
    assert [path.suffix for path in segments(tmp_path).values()] == [".sealed", ".seg"]
    assert segments(tmp_path / "nowhere") == {}


def test_a_segment_that_was_sealed_meanwhile_is_opened_under_its_new_name_and_one_that_is_gone_is_none(
    tmp_path: Path,
) -> None:
    listed = segment_path(tmp_path, 1, ".seg")
    listed.write_bytes(b"rows")
    sealed = listed.rename(listed.with_suffix(".sealed"))

    opened = open_segment(listed)
    assert opened is not None
    fd, path = opened
    assert (os.read(fd, 9), path) == (b"rows", sealed)
    os.close(fd)

    sealed.unlink()
    assert open_segment(listed) is None


def test_a_fresh_segment_has_its_birth_in_its_name_and_is_ours_until_we_close_it(tmp_path: Path) -> None:
    now = 20_400.5 * 86_400
    fd, segment = begin_segment(tmp_path / "spool", now)
    (path,) = (tmp_path / "spool").iterdir()
    other = os.open(path, os.O_RDONLY)

    assert path == segment_path(tmp_path / "spool", segment, ".seg")
    assert number_at(now) <= segment < number_at(now + 0.001)
    assert segment_day(segment) == 20_400
    assert not owner_is_gone(other)
    os.close(fd)
    assert owner_is_gone(other)
    os.close(other)
