"""Who looks at the page: a cookie that stands for a token, signed so that every worker understands it.

The cookie holds no token and nothing a token could be guessed from: a keyed hash of the token's digest, and when it
ends. There is no table of sessions; a token that is revoked is no longer found, and its sessions end with it. Writes
need a header besides (`CSRF_HEADER`), which another site's page can neither know nor send.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections import OrderedDict, deque
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from service.handover import Stamp, stamp_of
from service.keys import Denied, allowed, session_key, session_key_file
from service.serving.request import Reject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.keys import Keys, Token
    from service.settings import Scope, Settings

logger = logging.getLogger("evergreen.session")

COOKIE: Final = "evergreen_session"
CSRF_HEADER: Final = b"x-evergreen-csrf"
LASTS_S: Final = 8 * 3600
FAILURES: Final = 10
"""Failed sign-ins from one address within `FAILURES_S`; more wait."""
FAILURES_S: Final = 60.0
_MOST_ADDRESSES: Final = 1000


class Asker(NamedTuple):
    """Who sends a request."""

    token: Token
    csrf: str = ""
    """Of a session; "" for a bearer token."""
    expires_at: float | None = None

    @property
    def name(self) -> str:
        return self.token.name


class _Content(msgspec.Struct, frozen=True, array_like=True):
    mark: str  # of the token
    expires_at: float


class Sessions:
    """The sessions of one worker's deployment."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._settings, self._keys = settings, keys
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()  # address -> when, newest addresses last
        self._key_file = session_key_file(settings)
        self._key_stamp: Stamp | None = None
        self._kept = b""

    @property
    def _key(self) -> bytes:
        stamp = stamp_of(self._key_file)
        if stamp is None or stamp != self._key_stamp:  # the replicas' own key may take its place
            self._kept = session_key(self._settings)
            self._key_stamp = stamp_of(self._key_file)
        return self._kept

    def sign_in(self, given: str, address: str, now: float) -> tuple[Asker, str]:
        """Who this token is, and the cookie that stands for it. Raises `Denied`, and `Reject` after many failures."""
        failures = self._failures.get(address, deque())
        while failures and failures[0] < now - FAILURES_S:
            failures.popleft()
        if len(failures) >= FAILURES:
            wait = max(1, int(failures[0] + FAILURES_S - now) + 1)
            raise Reject(
                429, f"{len(failures)} failed sign-ins in a minute from {address}: try again in {wait} s", wait
            )
        token = self._keys.named(given.encode("utf-8", "surrogatepass"))
        if token is None:
            failures.append(now)
            self._failures[address] = failures
            self._failures.move_to_end(address)
            if len(self._failures) > _MOST_ADDRESSES:
                self._failures.popitem(last=False)
            logger.warning("a sign-in from %s failed: no such token", address)
            raise Denied(401, "this is no token of this deployment: `evergreen token list` names those there are")
        content = base64.urlsafe_b64encode(msgspec.json.encode(_Content(self._mark(token), float(int(now) + LASTS_S))))
        cookie = f"{content.decode()}.{self._signed('session', content)}"
        logger.info("%s signed in from %s", token.name, address)
        return self._opened(token, content, float(int(now) + LASTS_S)), cookie

    def asker(self, given: Mapping[bytes, bytes], now: float | None = None) -> Asker:
        """Who sends these headers, by bearer token or by cookie. Raises `Denied` (401, or 403 for a wrong token)."""
        if b"authorization" in given or b"cookie" not in given:
            return Asker(self._keys.bearer(given.get(b"authorization", b"")))
        cookie = _value(given[b"cookie"])
        found = self._of_cookie(cookie, time.time() if now is None else now)
        if found is None and cookie:
            raise Denied(401, "this session is over, or its token was revoked: sign in again")
        return Asker(self._keys.bearer(b"")) if found is None else found

    def require(self, scope: Scope, given: Mapping[bytes, bytes], *, writes: bool) -> Asker:
        """Who sends these headers, when they may. Raises `Denied`."""
        asker = self.asker(given)
        if writes and asker.csrf and not hmac.compare_digest(asker.csrf.encode(), given.get(CSRF_HEADER, b"")):
            raise Denied(403, f"a write with the page's cookie needs the header {CSRF_HEADER.decode()} of its session")
        allowed(asker.token, scope)
        return asker

    def _of_cookie(self, cookie: str, now: float) -> Asker | None:
        content, _, signature = cookie.encode().partition(b".")
        if not hmac.compare_digest(self._signed("session", content).encode(), signature):
            return None
        try:
            told = msgspec.json.decode(base64.urlsafe_b64decode(content), type=_Content)
        except (msgspec.DecodeError, binascii.Error):
            return None
        if told.expires_at <= now:
            return None
        found = None
        for token in self._keys.tokens():
            if hmac.compare_digest(self._mark(token), told.mark):
                found = token
        return None if found is None else self._opened(found, content, told.expires_at)

    def _opened(self, token: Token, content: bytes, expires_at: float) -> Asker:
        return Asker(token, self._signed("csrf", content), expires_at)

    def _mark(self, token: Token) -> str:
        return self._signed("token", token.digest.encode())[:32]

    def _signed(self, purpose: str, content: bytes) -> str:
        return hmac.new(self._key, purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def cookie_header(value: str, *, secure: bool, lasts_s: int = LASTS_S) -> bytes:
    """The `Set-Cookie` of a session; 0 s ends it."""
    shown = f"{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={lasts_s}"
    return (shown + ("; Secure" if secure else "")).encode()


def _value(header: bytes) -> str:
    try:
        found = SimpleCookie(header.decode("latin-1")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
