"""What has changed in the store? A handful of largest numbers, asked for at most once a second by a worker."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa

from monitoring.store import adaptations, aliases, checks, db_now, homes, runs, workers

ALIVE_S: Final = 10.0

TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "runs": ("state", "decisions", "quality", "runs", "versions"),
    "checks": ("state", "quality", "drift", "segments", "distribution"),
    "aliases": ("state", "traffic", "versions"),
    "adaptations": ("state", "quality"),
    "workers": ("state",),
    "homes": ("state",),
}
"""What has changed -> the parts of the page that show it."""


class Signature(NamedTuple):
    """What the store looks like; two equal ones show the same page."""

    runs: tuple[int | None, ...] = ()
    checks: int | None = None
    aliases: tuple[tuple[str, int], ...] = ()
    adaptations: tuple[tuple[int, int], ...] = ()
    workers: tuple[tuple[object, ...], ...] = ()
    homes: tuple[tuple[object, ...], ...] = ()

    @property
    def revision(self) -> str:
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()

    def topics(self, before: Signature) -> tuple[str, ...]:
        """The parts of the page that are other than `before`."""
        changed = (name for name in self._fields if getattr(self, name) != getattr(before, name))
        return tuple(dict.fromkeys(topic for name in changed for topic in TOPICS[name]))


def signature(engine: sa.Engine) -> Signature:
    """What the store looks like now: six queries that indexes or small tables answer."""
    waiting = runs.c.state.in_(("queued", "running", "waiting"))
    with engine.connect() as connection:
        newest = connection.scalar(sa.select(sa.func.max(runs.c.id)))
        # A run that starts or ends changes its state, which these two see.
        under_way = connection.execute(
            sa.select(runs.c.id, runs.c.state == "running").where(waiting).order_by(runs.c.id).limit(100)
        )
        unfinished = tuple(int(value) for row in under_way for value in row)
        check = connection.scalar(sa.select(sa.func.max(checks.c.id)))
        named = connection.execute(
            sa.select(aliases.c.name, aliases.c.alias, aliases.c.version).where(aliases.c.alias != "counter")
        ).all()
        adapted = connection.execute(
            sa.select(adaptations.c.version, sa.func.max(adaptations.c.number)).group_by(adaptations.c.version)
        ).all()
        alive = connection.execute(
            sa.select(workers.c.replica, workers.c.slot, workers.c.serving, workers.c.ready, workers.c.failed)
            .where(workers.c.seen_at > db_now(engine) - ALIVE_S)
            .order_by(workers.c.replica, workers.c.slot)
        ).all()
        seen = homes.c.seen_at > db_now(engine) - ALIVE_S
        known = connection.execute(
            sa.select(homes.c.home, homes.c.serving, homes.c.why_not_ready, sa.case((seen, 1), else_=0))
            .where(homes.c.gone_at.is_(None))
            .order_by(homes.c.home)
        ).all()
    return Signature(
        (newest, *unfinished),
        check,
        tuple(sorted((f"{row.name}/{row.alias}", row.version) for row in named)),
        tuple(sorted((row[0], row[1]) for row in adapted)),
        tuple(tuple(row) for row in alive),
        tuple(tuple(row) for row in known),
    )
