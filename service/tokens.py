"""The tokens of the deployment as the store keeps them, and how one host follows them.

Of each token the hash, its name and what it may do; of one that was revoked, too, so that no copy brings it back. A
controller looks once a second and copies what is good into its host's file: a token that is revoked anywhere is refused
by every replica that reaches the store within 2 s (a second, and a worker's next look). While the store is away the
file holds.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from monitoring.store import open_store, tokens
from service import keys
from service.keys import ADMIN, SCOPES, Token, TokenError
from service.secret_file import home_id
from training.lease import upsert

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from service.settings import Settings

logger = logging.getLogger("evergreen.tokens")


def add(engine: sa.Engine, name: str, scopes: Sequence[str], now: float) -> str:
    """A new token of this name; a second one of the same name may stand beside the first while clients change over.

    The caller has to show it: only its hash is kept. Raises `TokenError` for a name or scope that is none.
    """
    token, given = keys.make(name, scopes, now)
    with engine.begin() as connection:
        connection.execute(tokens.insert().values(_row(token)))
    return given


def revoke(engine: sa.Engine, name: str, now: float, *, old: bool = False) -> int:
    """How many tokens of this name are gone now: all, with `old` all but the newest. Raises `TokenError` for none."""
    if name == ADMIN:
        raise TokenError(
            "`admin` is each home's own token: delete its `var/token` (or change [security] token) and restart it; "
            "`evergreen replicas gone` revokes that of a home that is gone"
        )
    known = good(engine)
    meant = [token.digest for token in known if token.name == name]
    if not meant:
        named = ", ".join(dict.fromkeys(token.name for token in known if token.name != ADMIN)) or "none"
        raise TokenError(f"there is no token {name!r}; there are: {named}")
    with engine.begin() as connection:
        return _revoke(connection, tokens.c.digest.in_(meant[:-1] if old else meant), now)


def good(engine: sa.Engine) -> tuple[Token, ...]:
    """The tokens that are not revoked, oldest first."""
    wanted = (
        sa.select(tokens.c.name, tokens.c.scopes, tokens.c.digest, tokens.c.created_at, tokens.c.home)
        .where(tokens.c.revoked_at.is_(None))
        .order_by(tokens.c.created_at, tokens.c.digest)
    )
    with engine.connect() as connection:
        return tuple(
            Token(row.name, tuple(scope for scope in SCOPES if scope in row.scopes.split()), *row[2:])
            for row in connection.execute(wanted)
        )


def follow(engine: sa.Engine, settings: Settings, home: str) -> None:
    """This host's file says what the store says, and the store knows what was made on this host.

    A file of before the store had tokens is taken over once: a token that is in the store already stays as it is
    there, revoked or not. The home's own token takes the place of the one it had before. Raises `SettingsError` when
    that cannot be read, and `OSError` when the file cannot be written.
    """
    path = settings.tokens_file
    try:
        copied, before = keys.read(path), keys.of_before(path)
    except TokenError as error:
        logger.error("%s", error)
        copied, before = (), ()
    if before:
        with engine.begin() as connection:
            for token in before:
                connection.execute(upsert(engine, tokens).values(_row(token)).on_conflict_do_nothing())
        logger.info("%d tokens of %s are in the store now, for every replica", len(before), path)
    known = good(engine)
    set_here = settings.security.token.get_secret_value()  # is good where it is set: every replica has settings
    own = "" if set_here else keys.known_token(settings)
    wanted = {keys.digest(own)} if own else set()
    if {token.digest for token in known if token.home == home} != wanted:
        _keep_own(engine, home, next(iter(wanted), ""), time.time())
        known = good(engine)
    if known != copied or before or not path.exists():
        keys.write(path, known)


@contextmanager
def store_of(settings: Settings) -> Iterator[sa.Engine]:
    """The deployment's store, for a command of this host: its file of tokens follows at once, before and after."""
    engine = open_store(settings.store_url)
    home = home_id(settings)
    try:
        follow(engine, settings, home)
        yield engine
        follow(engine, settings, home)
    finally:
        engine.dispose()


def _keep_own(engine: sa.Engine, home: str, digest: str, now: float) -> None:
    with engine.begin() as connection:
        _revoke(connection, (tokens.c.home == home) & (tokens.c.digest != digest), now)
        if digest:
            row = upsert(engine, tokens).values(_row(Token(ADMIN, SCOPES, digest, now, home)))
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=[tokens.c.digest], set_={"home": row.excluded.home, "revoked_at": None}
                )
            )


def _revoke(connection: sa.Connection, which: sa.ColumnElement[bool], now: float) -> int:
    gone = tokens.update().where(which, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
    return connection.execute(gone).rowcount


def _row(token: Token) -> dict[str, Any]:
    return {
        "digest": token.digest,
        "name": token.name,
        "scopes": " ".join(token.scopes),
        "created_at": token.created_at,
        "home": token.home,
    }


def named(found: Iterable[Token]) -> list[Token]:
    """Those that were given a name: each home's own left out."""
    return [token for token in found if token.name != ADMIN]
