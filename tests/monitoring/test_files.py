"""A file is replaced whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from monitoring.files import replacing, write_atomically


def test_a_file_is_written_with_its_folder_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "live.json"

    write_atomically(path, b"one")
    write_atomically(path, b"two", durable=False)

    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["live.json"]


def test_the_mode_is_as_asked_for_and_else_as_the_umask_has_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "plain", b"")
        write_atomically(tmp_path / "secret", b"", mode=0o600)
        write_atomically(tmp_path / "open", b"", mode=0o644)
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"plain": 0o640, "secret": 0o600, "open": 0o644}


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    with pytest.raises(KeyboardInterrupt), replacing(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]
