"""Who may do what, and the secrets of a deployment: named tokens, its own token, the key of hashed columns.

Of the named tokens only hashes are kept, in one file that every process looks at. A token is 256 random bits, so that
its SHA-256 needs no salt and no slow hash. The deployment's own token (`[security] token`, or `var/token`) has the name
`admin` and every scope.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import msgspec

from monitoring.errors import EvergreenError
from monitoring.files import write_atomically
from service.handover import Stamp, stamp_of
from service.settings import Scope, Settings, SettingsError

if TYPE_CHECKING:
    from monitoring.privacy import Privacy

logger = logging.getLogger("evergreen.keys")

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
ADMIN: Final = "admin"
OPEN: Final = "open"
"""Source, in metrics, of rows that came without a token."""
RESERVED: Final = (ADMIN, OPEN)
FORMAT: Final = 1
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_MOST_SEEN: Final = 1000


class TokenError(EvergreenError, ValueError):
    """Raised when a token cannot be made, found or read as asked; the message says what to do."""


class Denied(EvergreenError):
    """Raised when a request may not do what it asks for; `status` is 401 without a good token, else 403."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Token(msgspec.Struct, frozen=True):
    """One token as it is kept."""

    name: str
    scopes: tuple[Scope, ...]
    digest: str
    """SHA-256 in hex."""
    created_at: float = 0.0


class _Kept(msgspec.Struct, frozen=True):
    tokens: tuple[Token, ...] = ()
    format: int = FORMAT


def read(path: Path) -> tuple[Token, ...]:
    """The tokens in the file, oldest first; none when there is no file. Raises `TokenError` when it is damaged."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as error:
        raise TokenError(f"{path} is damaged ({error}): restore it, or delete it and make the tokens anew") from None
    if kept.format != FORMAT:
        raise TokenError(
            f"{path} has format {kept.format}, this Evergreen reads {FORMAT}: use the release that wrote it"
        )
    return kept.tokens


def add(path: Path, name: str, scopes: Sequence[str], now: float) -> str:
    """A new token of this name; a second one of the same name may stand beside the first while clients change over.

    The caller has to show it: only its hash is kept. Raises `TokenError` for a name or scope that is none.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise TokenError(
            f"{name!r} is no name for a token: use 1 to 63 of a-z, 0-9, _ . -, and another than {' or '.join(RESERVED)}"
        )
    if strangers := [scope for scope in scopes if scope not in SCOPES]:
        raise TokenError(f"{strangers[0]!r} is no scope: the scopes are {', '.join(SCOPES)}")
    if not scopes:
        raise TokenError(f"a token needs a scope: {', '.join(SCOPES)}")
    token = secrets.token_urlsafe(32)
    made = Token(name, tuple(scope for scope in SCOPES if scope in scopes), _digest(token.encode()), now)
    with _changing(path) as keep:
        keep((*read(path), made))
    return token


def revoke(path: Path, name: str, *, old: bool = False) -> int:
    """How many tokens of this name are gone now: all, with `old` all but the newest. Raises `TokenError` for none."""
    with _changing(path) as keep:
        tokens = read(path)
        meant = [token for token in tokens if token.name == name]
        if not meant:
            named = ", ".join(dict.fromkeys(token.name for token in tokens)) or "none"
            raise TokenError(f"there is no token {name!r}; there are: {named}")
        gone = meant[:-1] if old else meant
        keep(tuple(token for token in tokens if token not in gone))
    return len(gone)


@contextmanager
def _changing(path: Path) -> Iterator[Callable[[tuple[Token, ...]], None]]:
    """Keep other writers of the tokens waiting; gives the function that replaces the file."""
    with _alone_with(path.with_suffix(".lock")):
        yield lambda tokens: write_atomically(path, msgspec.json.encode(_Kept(tokens)), mode=0o600)


class Keys:
    """The tokens as a worker knows them; `look` follows the files, so that a change needs no restart.

    Raises `SettingsError` when the deployment's own token can neither be read nor made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.tokens_file
        self._plane = settings.security.data_plane
        self._tokens: tuple[Token, ...] = ()
        self._seen: dict[bytes, Token] = {}  # headers that were good, so that most requests cost no hash
        self._stamps: tuple[Stamp | None, Stamp | None] | None = None
        management_token(settings)
        self.look()

    def look(self) -> None:
        """Read the files again when they have changed; a damaged one leaves the tokens as they were."""
        stamps = (stamp_of(self._path), stamp_of(self._settings.token_file))
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            tokens = read(self._path)
        except TokenError as error:
            logger.error("%s; the tokens known before stay", error)
            return
        admin = Token(ADMIN, SCOPES, _digest(management_token(self._settings).value.encode()))
        self._tokens, self._seen = (admin, *tokens), {}

    def open_to(self, client: str | None) -> bool:
        """Whether predictions and labels of a client at this address need no token; None: a socket of this machine."""
        if self._plane != "auto":
            return self._plane == "open"
        if client is None:
            return True
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    def require(self, scope: Scope, authorization: bytes) -> str:
        """Name of the token in an Authorization header. Raises `Denied` when it is none, or has not this scope."""
        token = self._seen.get(authorization) or self._find(authorization)
        return allowed(token, scope)

    def bearer(self, authorization: bytes) -> Token:
        """The token in an Authorization header. Raises `Denied` when it is none."""
        return self._seen.get(authorization) or self._find(authorization)

    def tokens(self) -> tuple[Token, ...]:
        """All that are good now."""
        return self._tokens

    def named(self, given: bytes) -> Token | None:
        """The token with these bytes, None when there is none."""
        digest, found = _digest(given), None
        for token in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _find(self, authorization: bytes) -> Token:
        kind, _, given = authorization.partition(b" ")
        if kind.lower() != b"bearer" or not given.strip():
            raise Denied(
                401,
                "no bearer token: send `Authorization: Bearer TOKEN`; `evergreen token add NAME --scope …` makes one, "
                "and var/token has the deployment's own",
            )
        seen = self._seen
        found = self.named(given.strip())
        if found is None:
            raise Denied(403, "this bearer token is not, or no longer, one of this deployment: `evergreen token list`")
        if len(seen) < _MOST_SEEN:
            seen[authorization] = found
        return found


def allowed(token: Token, scope: Scope) -> str:
    """Name of the token. Raises `Denied` when it has not this scope."""
    if scope not in token.scopes:
        raise Denied(
            403,
            f"the token {token.name!r} may {', '.join(token.scopes)}, not {scope}; `evergreen token add` makes one",
        )
    return token.name


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


class ManagementToken(NamedTuple):
    value: str
    new: bool
    """Made by this call: the caller tells the user where it is kept."""


def management_token(settings: Settings) -> ManagementToken:
    """The bearer token of `/manage`: from the settings, else from `var/token`, which is made (0600) when missing.

    Any number of processes may call it at once: one makes the token, all get it. Raises `SettingsError` when the file
    can neither be read nor made.
    """
    known = known_token(settings)
    if known:
        return ManagementToken(known, new=False)
    try:
        token, new = _secret(settings.token_file, lambda: secrets.token_urlsafe(32))
        return ManagementToken(token.decode(), new)
    except OSError as error:
        raise SettingsError(
            f"cannot keep the management token in {settings.token_file}: {error.strerror}; "
            "make the folder writable or set [security] token"
        ) from None


def known_token(settings: Settings) -> str:
    """The management token as far as this machine knows it, "" when none was made yet; makes nothing.

    Raises `SettingsError` when the file cannot be read.
    """
    given = settings.security.token.get_secret_value()
    if given:
        return given
    try:
        return settings.token_file.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SettingsError(
            f"cannot read the management token in {settings.token_file}: {error.strerror}; "
            "make it readable for this user or set [security] token"
        ) from None


def session_key(settings: Settings) -> bytes:
    """What the page's cookies are signed with: `var/session.key`, which is made (0600) when missing. Raises OSError."""
    return _secret(settings.var / "session.key", lambda: secrets.token_hex(32))[0]


def open_privacy(settings: Settings) -> Privacy | None:
    """What becomes of `[privacy]`'s columns; None when none is named, so that nothing is done on the hot path.

    The key that columns are hashed with is in `var/privacy.key`, which is made (0600) when missing. Raises
    `SettingsError` when it can neither be read nor made.
    """
    named = settings.privacy
    if not named.names:
        return None
    from monitoring.privacy import Privacy

    path, key = settings.var / "privacy.key", b""
    if named.hash:
        try:
            key, _ = _secret(path, lambda: secrets.token_hex(32))
        except OSError as error:
            raise SettingsError(
                f"cannot keep the key of [privacy] hash in {path}: {error.strerror}; make the folder writable"
            ) from None
    return Privacy(named.hash, named.drop, key)


def _secret(path: Path, make: Callable[[], str]) -> tuple[bytes, bool]:
    """The secret in a file, and whether this call made it because the file was missing or empty; its mode is 0600.

    Any number of processes may ask at once: all get the same. Raises `OSError`.
    """
    with _alone_with(path) as descriptor:
        known = os.read(descriptor, 4096).strip()
        if known:
            return known, False
        os.fchmod(descriptor, 0o600)
        made = make().encode()
        os.write(descriptor, made + b"\n")
        os.fsync(descriptor)
        return made, True


@contextmanager
def _alone_with(path: Path) -> Iterator[int]:
    """The descriptor of a file, made (0600) when missing; other processes that ask for it wait until it is let go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
