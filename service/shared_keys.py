"""The keys that all replicas of a deployment must have alike: of hashed columns, and of the page's sessions.

Each process reads them from files in its home (`var/privacy.key`, `var/session.key`); what is here puts the same key
into the files of every home. The store has each key wrapped (`service/wrapping.py`) by `[security] key`. Without
that, it has only what the key of hashed columns can be recognised by, so that a replica which would hash differently
is refused instead of making a record in which one person has two hashes.

A key of hashed columns that a home has is never replaced: rows were hashed with it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa

from monitoring.files import write_atomically
from monitoring.store import secrets as table
from service import keys
from service.secret_file import secret_in
from service.settings import SettingsError
from training.lease import upsert

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import Settings
    from service.wrapping import Wrapping

logger = logging.getLogger("evergreen.keys")

PRIVACY: Final = "privacy"
SESSION: Final = "session"
NAMES: Final = (PRIVACY, SESSION)


class Stored(NamedTuple):
    """A key as the store has it."""

    name: str
    mark: str
    """What it is recognised by: says nothing of it."""
    wrapped: bytes | None
    wrapped_by: str
    """Name of the wrapping key; "" when the key is not in the store."""


def mark_of(key: bytes) -> str:
    """What a key is recognised by."""
    return hmac.new(key, b"evergreen recognises", hashlib.sha256).hexdigest()[:16]


def stored(engine: sa.Engine) -> tuple[Stored, ...]:
    """The keys that the store knows."""
    wanted = sa.select(table.c.name, table.c.mark, table.c.wrapped, table.c.wrapped_by).order_by(table.c.name)
    with engine.connect() as connection:
        return tuple(Stored(*row) for row in connection.execute(wanted))


def forget(engine: sa.Engine, name: str) -> bool:
    """Whether the store knew this key, and does not know it any more: the next home that starts says which it is."""
    with engine.begin() as connection:
        return bool(connection.execute(table.delete().where(table.c.name == name)).rowcount)


def follow(engine: sa.Engine, settings: Settings) -> None:
    """This home's files hold the deployment's keys; what the store lacks of them is put there.

    What `[security] former_key` wrapped is wrapped anew. Raises `SettingsError` when this home would hash otherwise
    than the other replicas, or cannot open what they share; the message names the setting.
    """
    if settings.keeps_keys_alone:
        return
    from service.wrapping import Wrapping

    given = (settings.security.key.get_secret_value(), settings.security.former_key.get_secret_value())
    wrappings = [Wrapping(key) for key in given if key]
    if settings.privacy.hash:
        _follow_privacy(engine, keys.privacy_key_file(settings), wrappings)
    if wrappings:
        _follow_session(engine, keys.session_key_file(settings), wrappings)


def check_without_store(settings: Settings) -> None:
    """Refuse a start without the key of hashed columns: the store that should have it does not answer.

    Raises `SettingsError`.
    """
    path = keys.privacy_key_file(settings)
    if settings.privacy.hash and not settings.keeps_keys_alone and not path.exists():
        raise SettingsError(
            f"the store does not answer, and {path} is not there: without the deployment's key of [privacy] hash "
            "nothing could be recorded as before; start again when the store answers"
        )


def _follow_privacy(engine: sa.Engine, path: Path, wrappings: list[Wrapping]) -> None:
    here = _read(path)
    known = _known(engine, PRIVACY)
    if known is None:
        here, made = secret_in(path, keys.new_key)
        known = _offer(engine, PRIVACY, here, wrappings)
        if made and mark_of(here) != known.mark:  # another home was faster; nothing was hashed with this one
            path.unlink(missing_ok=True)
            here = None
    if here is not None and mark_of(here) == known.mark:
        _keep_wrapped(engine, known, here, wrappings)
        return
    if here is not None:
        raise SettingsError(
            f"{path} is not the key that the other replicas hash the columns of [privacy] hash with (it is "
            f"{mark_of(here)}, theirs {known.mark}): one person would have two hashes. Move the file away to go on "
            "with theirs; what was recorded with it stays hashed as it is"
        )
    if known.wrapped is None:
        raise SettingsError(
            f"the other replicas hash the columns of [privacy] hash with a key ({known.mark}) that this host does not "
            "have: set [security] key (EVERGREEN_SECURITY__KEY) to the same on every replica and restart first the "
            f"one that has the key, or copy its var/privacy.key to {path}; if it is lost everywhere, `evergreen keys "
            "forget privacy` lets a new one be made"
        )
    if not wrappings:
        raise SettingsError(
            f"the other replicas hash the columns of [privacy] hash with a key ({known.mark}) that the store has "
            "wrapped: set [security] key (EVERGREEN_SECURITY__KEY) as they have it"
        )
    opened = _opened(known, wrappings)
    write_atomically(path, opened + b"\n", mode=0o600)
    _keep_wrapped(engine, known, opened, wrappings)


def _follow_session(engine: sa.Engine, path: Path, wrappings: list[Wrapping]) -> None:
    known = _known(engine, SESSION) or _offer(engine, SESSION, secret_in(path, keys.new_key)[0], wrappings)
    here = _read(path)
    if here is None or mark_of(here) != known.mark:
        here = _opened(known, wrappings)
        write_atomically(path, here + b"\n", mode=0o600)  # who is signed in on this host signs in again
    _keep_wrapped(engine, known, here, wrappings)


def _opened(known: Stored, wrappings: list[Wrapping]) -> bytes:
    for wrapping in wrappings:
        if known.wrapped is not None and wrapping.name == known.wrapped_by:
            return wrapping.unwrap(known.wrapped, known.name)
    raise SettingsError(_not_this_key(known, wrappings))


def _keep_wrapped(engine: sa.Engine, known: Stored, key: bytes, wrappings: list[Wrapping]) -> None:
    """Put the key into the store when only its mark is there, or when the former wrapping key wrapped it."""
    if not wrappings or known.wrapped_by == wrappings[0].name:
        return
    if known.wrapped is not None and known.wrapped_by not in [each.name for each in wrappings]:
        logger.error("%s; this host has the key, and goes on with it", _not_this_key(known, wrappings))
        return
    with engine.begin() as connection:
        connection.execute(
            table.update()
            .where(table.c.name == known.name, table.c.mark == known.mark, table.c.wrapped_by == known.wrapped_by)
            .values(wrapped=wrappings[0].wrap(key, known.name), wrapped_by=wrappings[0].name)
        )
    logger.info("the key %r is in the store, wrapped with key %s", known.name, wrappings[0].name)


def _not_this_key(known: Stored, wrappings: list[Wrapping]) -> str:
    return (
        f"the key {known.name!r} in the store was wrapped with another [security] key: with {known.wrapped_by}, and "
        f"this host has {', '.join(each.name for each in wrappings)}; set the same on every replica, and while it is "
        "changed the one before as [security] former_key"
    )


def _offer(engine: sa.Engine, name: str, key: bytes, wrappings: list[Wrapping]) -> Stored:
    """The key as the store has it now: this one, unless another home was faster."""
    values = {
        "name": name,
        "mark": mark_of(key),
        "wrapped": wrappings[0].wrap(key, name) if wrappings else None,
        "wrapped_by": wrappings[0].name if wrappings else "",
    }
    with engine.begin() as connection:
        connection.execute(upsert(engine, table).values(values).on_conflict_do_nothing())
    found = _known(engine, name)
    assert found is not None
    return found


def _known(engine: sa.Engine, name: str) -> Stored | None:
    return next((each for each in stored(engine) if each.name == name), None)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes().strip() or None
    except FileNotFoundError:
        return None
