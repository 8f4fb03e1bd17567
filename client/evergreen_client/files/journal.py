"""How far a run has come, in a small file beside its output, so that a killed one goes on where it was.

Rows count as done once the output that holds them is on the disk; only then does the journal move on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from evergreen_client.files.errors import CannotResume, no_room

ENDING: Final = ".progress"
FORMAT: Final = 1


class Journal(msgspec.Struct):
    """What is kept of a run. `input` and `settings` are those of its beginning."""

    run: str
    """What made ids begin with."""
    input: list[list[str]]
    columns: list[str]
    settings: dict[str, Any]
    rows: int = 0
    """Of the input, done; refused ones among them."""
    refused: int = 0
    bytes: int = 0
    """Of the unfinished output, that hold them."""
    refused_bytes: int = 0
    """Of the list of refused rows."""
    versions: dict[int, int] = msgspec.field(default_factory=dict)
    """Rows that each version answered."""
    complete: bool = False
    """All rows are done; the output is only to be put in its place."""
    format: int = FORMAT


def path_of(out: Path) -> Path:
    """Where the journal of this output is."""
    return out.with_name(out.name + ENDING)


def read(out: Path) -> Journal | None:
    """The journal of this output; None when there is none. Raises `CannotResume` for one that cannot be read."""
    path = path_of(out)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise CannotResume(f"{path} is no journal of a run ({error}): begin anew with --force") from None
    if found.format != FORMAT:
        raise CannotResume(f"{path} is of another release (format {found.format}): begin anew with --force")
    return found


def write(out: Path, journal: Journal) -> None:
    """Put the journal on the disk, whole or not at all. Raises `FileError` when that is full."""
    path = path_of(out)
    beside = path.with_name(path.name + ".writing")
    try:
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(journal))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise no_room(path, error) from error


def sync_folder(folder: Path) -> None:
    """Names in this folder last through a power failure from here on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(out: Path, found: Journal, now: Journal) -> None:
    """Raise `CannotResume` when `now`, as it was asked, is not the run that `found` is the journal of."""
    begun = f"{out} was begun"
    if found.input != now.input or found.columns != now.columns:
        raise CannotResume(
            f"{begun} from another state of the input: {_difference(found, now)}. What was answered is in "
            f"{out.name}.partial; begin anew with --force, or name another --out"
        )
    for name, before in found.settings.items():
        if (asked := now.settings.get(name)) != before:
            raise CannotResume(
                f"{begun} with {name} {_word(before)}, and now it is {_word(asked)}: give the same, begin anew with "
                "--force, or name another --out"
            )
    if now.run and now.run != found.run:
        raise CannotResume(
            f"{begun} as run {found.run!r}, not {now.run!r}: leave --run out, or begin anew with --force"
        )


def _difference(found: Journal, now: Journal) -> str:
    before, after = ({name: rest for name, *rest in one.input} for one in (found, now))
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            return f"{name} is gone"
        if name not in before:
            return f"{name} is new"
        if before[name] != after[name]:
            return f"{name} has been changed"
    return "its columns differ"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value).lower() if isinstance(value, bool) else str(value)
