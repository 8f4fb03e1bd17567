"""Who may do what, and the secrets of a deployment, as one host knows them: tokens, the key of hashed columns.

The tokens stand in the store (`service/tokens.py`), of each only its hash; this host's controller copies them into one
file that every process looks at, so that no worker asks the store. A token is 256 random bits, so that its SHA-256
needs no salt and no slow hash. A home's own token (`[security] token`, or `var/token`) has the name `admin` and every
scope; every replica takes that of every home.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import msgspec

from monitoring.errors import EvergreenError
from monitoring.files import write_atomically
from service.handover import Stamp, stamp_of
from service.secret_file import secret_in
from service.settings import Scope, Settings, SettingsError

if TYPE_CHECKING:
    from monitoring.privacy import Privacy

logger = logging.getLogger("evergreen.keys")

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
ADMIN: Final = "admin"
OPEN: Final = "open"
"""Source, in metrics, of rows that came without a token."""
RESERVED: Final = (ADMIN, OPEN)
FORMAT: Final = 2
"""Of the file of tokens: a copy of what the store has."""
BEFORE: Final = 1
"""Its format when it was all there was: taken over into the store."""
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
    home: str = ""
    """Whose own it is; "" for a token that was given a name."""


class _Kept(msgspec.Struct, frozen=True):
    tokens: tuple[Token, ...] = ()
    format: int = FORMAT


def read(path: Path) -> tuple[Token, ...]:
    """The tokens in the file, oldest first; none when there is no file. Raises `TokenError` when it is damaged."""
    return _kept(path).tokens


def of_before(path: Path) -> tuple[Token, ...]:
    """The tokens of a file that an Evergreen of before wrote, which no store has yet. Raises `TokenError`."""
    kept = _kept(path)
    return kept.tokens if kept.format == BEFORE else ()


def write(path: Path, tokens: Sequence[Token]) -> None:
    """Replace the file, which only this user may read. Raises `OSError`."""
    write_atomically(path, msgspec.json.encode(_Kept(tuple(tokens))), mode=0o600)


def _kept(path: Path) -> _Kept:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (ValueError, RecursionError) as error:
        raise TokenError(f"{path} is damaged ({error}): delete it, it is copied from the store again") from None
    if kept.format not in (FORMAT, BEFORE):
        raise TokenError(
            f"{path} has format {kept.format}, this Evergreen reads {FORMAT}: use the release that wrote it"
        )
    return kept


def make(name: str, scopes: Sequence[str], now: float) -> tuple[Token, str]:
    """A new token as it is kept, and what its holder gets: shown once, as only its hash is kept.

    Raises `TokenError` for a name or scope that is none.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise TokenError(
            f"{name!r} is no name for a token: use 1 to 63 of a-z, 0-9, _ . -, and another than {' or '.join(RESERVED)}"
        )
    if strangers := [scope for scope in scopes if scope not in SCOPES]:
        raise TokenError(f"{strangers[0]!r} is no scope: the scopes are {', '.join(SCOPES)}")
    if not scopes:
        raise TokenError(f"a token needs a scope: {', '.join(SCOPES)}")
    given = secrets.token_urlsafe(32)
    return Token(name, tuple(scope for scope in SCOPES if scope in scopes), digest(given), now), given


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
        admin = Token(ADMIN, SCOPES, digest(management_token(self._settings).value))
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
        found, print_ = None, hashlib.sha256(given).hexdigest()
        for token in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.digest, print_):
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


def digest(token: str) -> str:
    """What is kept of a token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


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
        token, new = secret_in(settings.token_file, lambda: secrets.token_urlsafe(32))
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
    return secret_in(session_key_file(settings), new_key)[0]


def session_key_file(settings: Settings) -> Path:
    return settings.var / "session.key"


def privacy_key_file(settings: Settings) -> Path:
    return settings.var / "privacy.key"


def new_key() -> str:
    """A key of 256 random bits, in hex."""
    return secrets.token_hex(32)


def open_privacy(settings: Settings) -> Privacy | None:
    """What becomes of `[privacy]`'s columns; None when none is named, so that nothing is done on the hot path.

    The key that columns are hashed with is in `var/privacy.key`. A host that is alone makes it (0600) when it is
    missing; where several may share a store, `service/shared_keys.py` puts it there first. Raises `SettingsError` when
    it can neither be read nor made.
    """
    named = settings.privacy
    if not named.names:
        return None
    from monitoring.privacy import Privacy

    path, key = privacy_key_file(settings), b""
    if named.hash:
        try:
            key = secret_in(path, new_key)[0] if settings.keeps_keys_alone else path.read_bytes().strip()
        except FileNotFoundError:
            raise SettingsError(
                f"{path} is not there: the key of [privacy] hash is the deployment's, and comes from its store when "
                "that answers; the server starts again by itself"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"cannot keep the key of [privacy] hash in {path}: {error.strerror}; make the folder writable"
            ) from None
    return Privacy(named.hash, named.drop, key)
