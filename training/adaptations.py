"""The adaptations of each version in the store: which one is in force, and what happened when.

The newest row of a version speaks: `made` puts its adaptation into force, every other kind ends it. Rows are written
by the holder of the lease alone, as aliases are moved. One look at the store answers each question.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from monitoring.errors import CannotGoOn, EvergreenError
from monitoring.store import adaptations, versions
from training.lease import CONTROLLER, fence, insert_fenced, write_fenced
from training.runs import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.adaptation import Adaptation

Kind = Literal["made", "reverted", "off", "on"]
"""`made`: in force from now on. `reverted`: the raw output serves until another is made. `off`: none is made, of any
version, until `on`."""

_COLUMNS: Final = tuple(column for column in adaptations.c if column.name not in ("served", "whole"))
_TRIES: Final = 3
_IS_SWITCH: Final = adaptations.c.kind.in_(("off", "on"))
_NEWEST: Final = (adaptations.c.at.desc(), adaptations.c.version.desc(), adaptations.c.number.desc())


class UnknownAdaptation(CannotGoOn, LookupError):
    """Raised when a version has no adaptation of this number; what only ended one has a number, too, but no bytes."""

    def __init__(self, version: int, number: int) -> None:
        super().__init__(f"version {version} has no adaptation {number}: `evergreen adaptation` lists those there are")


class SwitchedOff(EvergreenError, RuntimeError):
    """Raised when an adaptation is made although the last switch says `off`; nothing was written."""

    def __init__(self, version: int) -> None:
        super().__init__(f"adaptations are switched off, version {version} gets none: `evergreen adaptation on`")


class InForce(NamedTuple):
    """The adaptation that a version answers with."""

    number: int
    digest: str
    """SHA-256 of the bytes that `Adaptations.served` gives, in hex."""


class Event(NamedTuple):
    """One row of the table `adaptations` without the adaptation itself."""

    version: int
    number: int
    at: float
    """Seconds since 1970 UTC."""
    kind: Kind
    who: str
    why: str
    digest: str | None
    """None when it put none into force."""
    record: dict[str, Any]
    """Evidence and weights, as who made it left them."""


class Adaptations:
    """The table `adaptations` of one store."""

    def __init__(self, engine: sa.Engine, lease: str = CONTROLLER) -> None:
        self._engine, self._lease = engine, lease

    def add(
        self,
        version: int,
        *,
        kind: Kind,
        who: str,
        why: str,
        now: float,
        token: int,
        served: Adaptation | None = None,
        whole: Adaptation | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> int:
        """The number of the new row, the version's largest one so far plus one.

        `made` needs `served`, as it is to answer, and `whole`, with every expert; both are stored with this number in
        them. Other kinds have neither. Raises `LeaseLost`, `SwitchedOff` for one that is made while the last switch
        says so, and ValueError for one without what it needs.
        """
        if not (served is not None) == (whole is not None) == (kind == "made"):
            raise ValueError(f"`made` comes with both adaptations, other kinds with none; got {kind!r}")
        for left in reversed(range(_TRIES)):
            newest = self.newest(version)
            number = 1 if newest is None else newest.number + 1
            held = [
                None if one is None else msgspec.structs.replace(one, version=version, number=number).encode()
                for one in (served, whole)
            ]
            values = {
                "version": version,
                "number": number,
                "at": now,
                "kind": kind,
                "who": who,
                "why": why,
                "digest": None if held[0] is None else hashlib.sha256(held[0]).hexdigest(),
                "served": held[0],
                "whole": held[1],
                "record": as_json(record or {}),
            }
            last = sa.select(adaptations.c.kind).where(_IS_SWITCH).order_by(*_NEWEST).limit(1).scalar_subquery()
            is_on = sa.func.coalesce(last, "on") != "off" if kind == "made" else None
            try:
                if insert_fenced(self._engine, adaptations, values, token, self._lease, only_if=is_on) is None:
                    raise SwitchedOff(version)
                return number
            except sa.exc.IntegrityError:  # another thread of the holder has just taken this number
                if not left:
                    raise
        raise AssertionError  # the last try has returned or raised

    def in_force(self, version: int) -> InForce | None:
        """What this version answers with: its newest row's, when that was made and `off` was not said since."""
        newest = self.newest(version)
        if newest is None or newest.kind != "made" or newest.digest is None:
            return None
        switch = self.switch()
        if switch is not None and switch.kind == "off" and switch.at > newest.at:  # said while another version served
            return None
        return InForce(newest.number, newest.digest)

    def newest(self, version: int) -> Event | None:
        """What happened last to this version's adaptations, None when nothing did."""
        return next(iter(self.list(version, 1)), None)

    def switch(self) -> Event | None:
        """The last `off` or `on`, whichever version served then; None: never said, which means on."""
        return next(iter(self._events(1, _IS_SWITCH, order=_NEWEST)), None)

    def list(self, version: int, limit: int = 50, *, up_to: int | None = None) -> Sequence[Event]:
        """At most `limit` rows of this version, newest first; with `up_to` those of this number and before."""
        wanted = [adaptations.c.version == version]
        if up_to is not None:
            wanted.append(adaptations.c.number <= up_to)
        return self._events(limit, *wanted, order=(adaptations.c.number.desc(),))

    def newest_of_all(self, limit: int) -> Sequence[Event]:
        """At most `limit` rows of any version, newest first."""
        return self._events(limit, order=_NEWEST)

    def served(self, version: int, number: int) -> bytes:
        """The adaptation as it answers; `training.adaptation.decode` reads it. Raises `UnknownAdaptation`."""
        return self._bytes(adaptations.c.served, version, number)

    def whole(self, version: int, number: int) -> bytes:
        """The adaptation with every expert, to score them. Raises `UnknownAdaptation`."""
        return self._bytes(adaptations.c.whole, version, number)

    def prune(self, before: float, keep_newest: int, token: int) -> int:
        """How many rows older than `before` (seconds since 1970 UTC) were deleted.

        The last switch stays, and so do the newest `keep_newest` (at least 1) of each version that still exists.
        Raises `LeaseLost`.
        """
        if keep_newest < 1:
            raise ValueError(f"keep_newest must be at least 1, what is in force stays; got {keep_newest}")
        other, switch = adaptations.alias(), self.switch()
        newest = sa.select(sa.func.max(other.c.number)).where(other.c.version == adaptations.c.version)
        exists = sa.exists().where(versions.c.version == adaptations.c.version)
        old = [
            adaptations.c.at < before,
            sa.or_(~exists, adaptations.c.number <= newest.scalar_subquery() - keep_newest),
            fence(self._engine, token, self._lease),
        ]
        if switch is not None:
            old.append(sa.or_(adaptations.c.version != switch.version, adaptations.c.number != switch.number))
        gone = adaptations.delete().where(*old).returning(adaptations.c.number)
        return len(write_fenced(self._engine, gone, token, self._lease))

    def _events(
        self, limit: int, *conditions: sa.ColumnElement[bool], order: Sequence[sa.ColumnElement[Any]]
    ) -> Sequence[Event]:
        wanted = sa.select(*_COLUMNS).where(*conditions).order_by(*order).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted).all()
        return [Event(**{**row._asdict(), "record": msgspec.json.decode(row.record)}) for row in rows]

    def _bytes(self, column: sa.Column[bytes], version: int, number: int) -> bytes:
        wanted = sa.select(column).where(adaptations.c.version == version, adaptations.c.number == number)
        with self._engine.connect() as connection:
            found = connection.scalar(wanted)
        if found is None:
            raise UnknownAdaptation(version, number)
        return bytes(found)
