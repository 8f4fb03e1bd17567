"""The homes of a deployment: every `var` that a replica ever ran on, what runs there now, and which are gone for good.

Each replica's controller reports its own about once a second; times are the database's. A home is known until a
person says that it is gone: an erasure is over only when each known home has forgotten, too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from monitoring.errors import CannotGoOn
from monitoring.retention import DAY_S
from monitoring.store import db_now, homes, leases, tokens
from training.lease import CONTROLLER, fence, upsert, write_fenced

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SEEN_S: Final = 10.0
"""Seconds; a home that was not seen for longer is away."""


class UnknownHome(CannotGoOn, LookupError):
    """Raised when no home has this name, or several have."""


class HomeGone(CannotGoOn, RuntimeError):
    """Raised when a home comes back that a person said to be gone."""

    def __init__(self, home: str, folder: Path) -> None:
        super().__init__(
            f"this home ({home}) was said to be gone for good: erasures since then did not look here, so it takes no "
            f"part any more. Move {folder} away and start with an empty one; rows that still wait in its spool are not "
            "stored"
        )


class HomeInUse(CannotGoOn, RuntimeError):
    """Raised when a home is said to be gone whose replica is at work."""


@dataclass(frozen=True, slots=True)
class HomeReport:
    """What the controller of a home says of it."""

    home: str
    host: str
    replica: str
    release: str
    serving: int | None
    why_not_ready: str
    spool_bytes: int
    lag_s: float


@dataclass(frozen=True, slots=True)
class Home:
    """A home as the store knows it."""

    home: str
    host: str  # name of its machine
    replica: str  # its server, as in `workers` and in the lease's holder
    release: str  # of Evergreen
    serving: int | None  # the version its workers answer with; None: none, or several
    why_not_ready: str  # "" when it answers predictions
    spool_bytes: int  # that wait for the store
    lag_s: float  # how long the oldest of them waits
    ahead_s: float  # its clock before the database's
    seen_s: float  # ago
    leads: bool  # holds the lease
    gone: bool  # a person said that it does not come back

    @property
    def away(self) -> bool:
        """Whether nothing is heard of it now."""
        return not self.gone and self.seen_s > SEEN_S


def report_home(engine: sa.Engine, report: HomeReport, clock: float) -> bool:
    """Write down what a home says of itself; whether it may go on: False when it was said to be gone.

    `clock` is the home's, in seconds since 1970 UTC.
    """
    now = db_now(engine)
    row = upsert(engine, homes).values(**asdict(report), ahead_s=clock - now, seen_at=now)
    kept = {name: row.excluded[name] for name in (*asdict(report), "ahead_s", "seen_at") if name != "home"}
    write = row.on_conflict_do_update(index_elements=[homes.c.home], set_=kept).returning(homes.c.gone_at)
    with engine.begin() as connection:
        return connection.execute(write).scalar_one() is None


def is_gone(engine: sa.Engine, home: str) -> bool:
    """Whether a person said that this home does not come back."""
    with engine.connect() as connection:
        return connection.scalar(sa.select(homes.c.gone_at).where(homes.c.home == home)) is not None


def known_homes(engine: sa.Engine) -> tuple[Home, ...]:
    """Every home that was ever seen, by host."""
    now = db_now(engine)
    leader = sa.select(leases.c.holder).where(leases.c.name == CONTROLLER, leases.c.expires_at > now)
    wanted = sa.select(*homes.c, (now - homes.c.seen_at).label("seen_s")).order_by(homes.c.host, homes.c.home)
    with engine.connect() as connection:
        holder = connection.scalar(leader) or ""
        return tuple(_home(row, holder) for row in connection.execute(wanted))


def expected(engine: sa.Engine) -> tuple[Home, ...]:
    """The homes that are there, or may come back."""
    return tuple(home for home in known_homes(engine) if not home.gone)


def find_home(engine: sa.Engine, name: str) -> Home:
    """The home with this id, or the only one on the host of this name. Raises `UnknownHome`."""
    known = expected(engine)
    found = [each for each in known if name in (each.home, each.host, each.replica)]
    if len(found) != 1:
        what = "is the name of several homes" if found else "is no home of this deployment"
        raise UnknownHome(f"{name!r} {what}; there are {told(found or known)}: name one by its id")
    return found[0]


def told(found: Iterable[Home]) -> str:
    """The homes by id and host."""
    return ", ".join(f"{each.home} (on {each.host})" for each in found) or "none"


def declare_gone(engine: sa.Engine, name: str, token: int) -> Home:
    """The home that counts as gone from now on: erasures do not wait for it, and its own token is revoked.

    Fenced with the lease's `token`. Raises `UnknownHome`, `HomeInUse` when its replica was seen a moment ago, and
    `LeaseLost`.
    """
    home = find_home(engine, name)
    unseen = homes.c.seen_at < db_now(engine) - SEEN_S
    change = (
        homes.update()
        .where(homes.c.home == home.home, unseen, fence(engine, token))
        .values(gone_at=db_now(engine))
        .returning(homes.c.home)
    )
    if not write_fenced(engine, change, token):
        raise HomeInUse(
            f"a replica runs on home {home.home} (on {home.host}), seen {home.seen_s:.0f} s ago: stop it first, and "
            f"wait for {SEEN_S:.0f} s"
        )
    with engine.begin() as connection:
        own = tokens.update().where(tokens.c.home == home.home, tokens.c.revoked_at.is_(None))
        connection.execute(own.values(revoked_at=db_now(engine)))
    return home


def expire_homes(engine: sa.Engine, days: int, token: int) -> int:
    """How many homes count as gone from now on, as nobody has seen them for so long. Raises `LeaseLost`."""
    old = [home for home in expected(engine) if home.seen_s > days * DAY_S]
    for home in old:
        declare_gone(engine, home.home, token)
    return len(old)


def _home(row: Any, holder: str) -> Home:
    values = {name: getattr(row, name) for name in Home.__dataclass_fields__ if name not in ("leads", "gone")}
    return Home(**values, leads=holder.startswith(f"{row.replica}:"), gone=row.gone_at is not None)
