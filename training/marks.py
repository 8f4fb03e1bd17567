"""Tags and notes on a version: what people call it and say of it. Each is a run, with who said it and when.

Nothing that serves or trains looks at them, so anyone may write one: no lease is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa

from monitoring.errors import CannotGoOn
from monitoring.store import runs
from training.manifest import record_of
from training.runs import MARKS, Runs

if TYPE_CHECKING:
    from training.registry import Registry

TAG: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}"
"""What a tag looks like."""
LONGEST_NOTE: Final = 1000


class BadMark(CannotGoOn, ValueError):
    """Raised for a tag or a note that cannot be kept as it is."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said of a version."""

    run: int
    at: float  # seconds since 1970 UTC
    who: str
    text: str


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was said of one version."""

    tags: tuple[str, ...] = ()  # in the order in which they were put on
    notes: tuple[Note, ...] = ()  # oldest first


def marks(engine: sa.Engine) -> dict[int, Marks]:
    """The tags and notes of each version that has any."""
    wanted = sa.select(runs.c.id, runs.c.kind, runs.c.created_at, runs.c.who, runs.c.why, runs.c.version, runs.c.record)
    wanted = wanted.where(runs.c.kind.in_(MARKS), runs.c.version.is_not(None)).order_by(runs.c.id)
    tags: dict[int, dict[str, None]] = {}
    notes: dict[int, list[Note]] = {}
    with engine.connect() as connection:
        for row in connection.execute(wanted):
            if row.kind == "note":
                said = Note(run=row.id, at=float(row.created_at), who=row.who, text=row.why)
                notes.setdefault(row.version, []).append(said)
                continue
            asked = record_of(msgspec.json.decode(row.record), f"the record of run {row.id}").payload
            known = tags.setdefault(row.version, {})
            for name in asked.remove:
                known.pop(name, None)
            known.update(dict.fromkeys(asked.add))
    return {
        version: Marks(tags=tuple(tags.get(version, ())), notes=tuple(notes.get(version, ())))
        for version in sorted(tags.keys() | notes.keys())
    }


def tag(
    registry: Registry,
    version: int,
    add: Sequence[str],
    remove: Sequence[str],
    *,
    engine: sa.Engine,
    who: str,
    why: str,
    now: float,
) -> int:
    """Put tags on a version and take others off; the run. Raises `UnknownVersion` and `BadMark`."""
    registry.get(version)
    for name in (*add, *remove):
        if not re.fullmatch(TAG, name):
            raise BadMark(f"a tag is 1 to 40 letters, digits, '.', '_' and '-', the first no sign; got {name[:60]!r}")
    there = marks(engine).get(version, Marks()).tags
    if absent := [name for name in remove if name not in there]:
        has = f"it has {', '.join(there)}" if there else "it has none"
        raise BadMark(f"version {version} has no tag {', '.join(absent)}; {has}")
    if not add and not remove:
        raise BadMark(f"which tag is to be put on version {version}, or taken off? name at least one")
    return Runs(engine).mark("tag", version, who=who, why=why, now=now, add=list(add), remove=list(remove))


def note(registry: Registry, version: int, text: str, *, engine: sa.Engine, who: str, now: float) -> int:
    """Keep what somebody says of a version; the run. Raises `UnknownVersion` and `BadMark`."""
    registry.get(version)
    if not text.strip() or len(text) > LONGEST_NOTE:
        raise BadMark(f"a note is a text of 1 to {LONGEST_NOTE:,} characters, got {len(text):,}")
    return Runs(engine).mark("note", version, who=who, why=text, now=now)
