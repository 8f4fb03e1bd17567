"""Two homes of one store: the same tokens, and the same keys, whichever home had them first."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from monitoring.store import open_store, secrets
from service import keys, shared_keys, tokens
from service.command.shared import take_part
from service.configuration import load
from service.keys import Keys, management_token
from service.secret_file import home_id
from service.settings import Settings, SettingsError
from service.wrapping import Wrapping, WrongKey
from training.homes import HomeGone, HomeReport, report_home
from training.lease import CONTROLLER, Lease

KEY, OTHER = "k" * 32, "o" * 40
HASH = '["email"]'

HomeMaker = Callable[..., Settings]


@pytest.fixture
def home(tmp_path: Path, store_url: str) -> HomeMaker:
    """Makes the settings of a home of the store; `home("one", SECURITY__KEY=KEY)`."""

    def made(name: str, **given: str) -> Settings:
        environ = {"EVERGREEN_HOME": str(tmp_path / name), "EVERGREEN_STORE__URL": store_url}
        return load(environ=environ | {f"EVERGREEN_{each}": value for each, value in given.items()})

    return made


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    opened = open_store(store_url)
    yield opened
    opened.dispose()


def follow(engine: sa.Engine, *settings: Settings) -> None:
    for each in settings:
        tokens.follow(engine, each, home_id(each))


def may(settings: Settings, token: str, scope: Any = "read") -> bool:
    try:
        Keys(settings).require(scope, f"Bearer {token}".encode())
    except keys.Denied:
        return False
    return True


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_made_on_one_home_is_good_on_the_other_until_it_is_revoked_there(
    home: HomeMaker, engine: sa.Engine
) -> None:
    one, two = home("one"), home("two")
    token = tokens.add(engine, "ana", ["read"], 1.0)
    follow(engine, one, two)
    assert may(one, token) and may(two, token)

    assert tokens.revoke(engine, "ana", 2.0) == 1
    follow(engine, one, two)

    assert not may(one, token) and not may(two, token)


def test_every_home_takes_the_own_token_of_each_and_no_longer_the_one_before(
    home: HomeMaker, engine: sa.Engine
) -> None:
    one, two = home("one"), home("two")
    before, _ = management_token(one).value, management_token(two)
    follow(engine, one, two, one)
    assert may(two, before, "operate") and may(one, management_token(two).value, "operate")

    one.token_file.unlink()
    after = management_token(one).value
    follow(engine, one, two)

    assert may(two, after, "operate") and not may(two, before, "operate")


def test_a_token_of_the_settings_is_good_where_it_is_set(home: HomeMaker, engine: sa.Engine) -> None:
    one, two = home("one", SECURITY__TOKEN="given-to-one"), home("two")
    management_token(two)
    follow(engine, one, two, one)

    assert may(one, "given-to-one") and not may(two, "given-to-one")
    assert may(one, management_token(two).value, "operate")
    assert b"given-to-one" not in two.tokens_file.read_bytes()


def test_tokens_files_of_before_are_taken_over_none_lost_none_doubled_none_brought_back(
    home: HomeMaker, engine: sa.Engine
) -> None:
    one, two = home("one"), home("two")
    both, token = keys.make("both", ["read"], 1.0)
    ana, of_ana = keys.make("ana", ["read"], 2.0)
    bo, of_bo = keys.make("bo", ["predict"], 3.0)
    for settings, own in ((one, (both, ana)), (two, (both, bo))):
        settings.var.mkdir(parents=True)
        kept = [{name: getattr(each, name) for name in ("name", "scopes", "digest", "created_at")} for each in own]
        settings.tokens_file.write_bytes(msgspec.json.encode({"tokens": kept, "format": 1}))
    as_it_was = one.tokens_file.read_bytes()
    assert may(one, token) and not may(two, of_ana)  # while the store is away

    follow(engine, one, two, one)

    assert [each.name for each in tokens.named(tokens.good(engine))] == ["both", "ana", "bo"]
    for settings in (one, two):
        assert may(settings, token) and may(settings, of_ana) and may(settings, of_bo, "predict")
    tokens.revoke(engine, "ana", 4.0)
    one.tokens_file.write_bytes(as_it_was)  # restored from a backup
    follow(engine, one)
    assert [each.name for each in tokens.named(tokens.good(engine))] == ["both", "bo"]


def test_a_worker_that_starts_while_the_store_is_away_has_the_tokens_of_before(
    home: HomeMaker, engine: sa.Engine
) -> None:
    one = home("one")
    token = tokens.add(engine, "ana", ["read"], 1.0)
    follow(engine, one)

    assert may(
        load(environ={"EVERGREEN_HOME": str(one.home), "EVERGREEN_STORE__URL": "postgresql://nobody:1/x"}), token
    )


def test_the_deployment_s_own_token_cannot_be_revoked_by_its_name(home: HomeMaker, engine: sa.Engine) -> None:
    management_token(home("one"))
    follow(engine, home("one"))

    with pytest.raises(keys.TokenError, match="each home's own token"):
        tokens.revoke(engine, "admin", 1.0)


def test_homes_that_start_at_once_lose_no_token(home: HomeMaker, engine: sa.Engine) -> None:
    homes = [home(f"home-{number}") for number in range(4)]
    own = [management_token(each).value for each in homes]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: follow(engine, each), homes * 3))
    follow(engine, *homes)

    assert all(may(there, token, "operate") for there, token in itertools.product(homes, own))


# --- keys of hashed columns and sessions ---------------------------------------------------------------------------


def hidden(settings: Settings) -> str | None:
    privacy = keys.open_privacy(settings)
    assert privacy is not None
    return privacy.hidden("ana@example.org")


def test_with_a_wrapping_key_a_value_has_one_hash_and_a_cookie_one_meaning_on_every_home(
    home: HomeMaker, engine: sa.Engine
) -> None:
    one, two = (home(name, SECURITY__KEY=KEY, PRIVACY__HASH=HASH) for name in ("one", "two"))
    for each in (one, two):
        take_part(each)

    assert hidden(one) == hidden(two)
    assert keys.session_key(one) == keys.session_key(two)
    for path in (keys.privacy_key_file(two), keys.session_key_file(two)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        kept = path.read_bytes().strip()
        with engine.connect() as connection:
            for row in connection.execute(sa.select(secrets.c.wrapped)):
                assert kept not in row.wrapped and bytes.fromhex(kept.decode()) not in row.wrapped


def test_homes_that_start_at_once_agree_on_one_key(home: HomeMaker, engine: sa.Engine) -> None:
    homes = [home(f"home-{number}", SECURITY__KEY=KEY, PRIVACY__HASH=HASH) for number in range(4)]

    def start(each: Settings) -> str | None:
        take_part(each)
        return hidden(each)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, homes))) == 1


def test_a_key_that_a_home_has_is_taken_over_and_one_that_differs_is_refused_not_replaced(
    home: HomeMaker, engine: sa.Engine
) -> None:
    one, two = (home(name, SECURITY__KEY=KEY, PRIVACY__HASH=HASH) for name in ("one", "two"))
    for name, each in (("a", one), ("b", two)):
        each.var.mkdir(parents=True)
        keys.privacy_key_file(each).write_text(name * 64)
    take_part(one)

    with pytest.raises(SettingsError, match="one person would have two hashes") as refused:
        take_part(two)

    assert str(keys.privacy_key_file(two)) in str(refused.value)
    assert keys.privacy_key_file(one).read_text() == "a" * 64
    assert keys.privacy_key_file(two).read_text() == "b" * 64
    keys.privacy_key_file(two).unlink()
    take_part(two)
    assert hidden(one) == hidden(two)


def test_without_a_wrapping_key_a_second_home_that_would_hash_otherwise_is_refused(
    home: HomeMaker, engine: sa.Engine, store_url: str
) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("one host: its key is nobody else's")
    one, two = home("one", PRIVACY__HASH=HASH), home("two", PRIVACY__HASH=HASH)
    take_part(one)
    before = keys.privacy_key_file(one).read_bytes()

    with pytest.raises(SettingsError, match=r"set \[security\] key \(EVERGREEN_SECURITY__KEY\) to the same"):
        take_part(two)
    assert not keys.privacy_key_file(two).exists()

    take_part(one)  # it goes on by itself
    with_key = home("one", PRIVACY__HASH=HASH, SECURITY__KEY=KEY)
    take_part(with_key)  # and later shares what it has
    take_part(home("two", PRIVACY__HASH=HASH, SECURITY__KEY=KEY))
    assert keys.privacy_key_file(one).read_bytes() == before
    assert hidden(one) == hidden(two)


def test_a_wrong_wrapping_key_is_refused_with_what_to_do(home: HomeMaker, engine: sa.Engine) -> None:
    take_part(home("one", SECURITY__KEY=KEY, PRIVACY__HASH=HASH))

    with pytest.raises(SettingsError, match=r"another \[security\] key.*set the same on every replica"):
        take_part(home("two", SECURITY__KEY=OTHER, PRIVACY__HASH=HASH))
    assert not keys.privacy_key_file(home("two")).exists()


def test_the_wrapping_key_is_changed_by_giving_the_one_before(home: HomeMaker, engine: sa.Engine) -> None:
    one = home("one", SECURITY__KEY=KEY, PRIVACY__HASH=HASH)
    take_part(one)
    known = hidden(one)

    take_part(home("one", SECURITY__KEY=OTHER, SECURITY__FORMER_KEY=KEY, PRIVACY__HASH=HASH))

    assert {each.wrapped_by for each in shared_keys.stored(engine)} == {Wrapping(OTHER).name}
    two = home("two", SECURITY__KEY=OTHER, PRIVACY__HASH=HASH)
    take_part(two)
    assert hidden(two) == known
    take_part(one)  # has the key already: it goes on until it is given the new one
    with pytest.raises(SettingsError, match="another"):
        take_part(home("three", SECURITY__KEY=KEY, PRIVACY__HASH=HASH))


def test_a_key_that_is_lost_everywhere_is_forgotten_by_a_command(home: HomeMaker, engine: sa.Engine) -> None:
    take_part(home("one", SECURITY__KEY=KEY, PRIVACY__HASH=HASH))

    assert shared_keys.forget(engine, "privacy") and not shared_keys.forget(engine, "privacy")

    two = home("two", SECURITY__KEY=OTHER, PRIVACY__HASH=HASH)
    with pytest.raises(SettingsError):  # the key of sessions is wrapped with the lost one, too
        take_part(two)
    assert shared_keys.forget(engine, "session")
    take_part(two)
    assert hidden(two)


def test_a_home_without_the_key_does_not_start_while_the_store_is_away(tmp_path: Path) -> None:
    away = {
        "EVERGREEN_HOME": str(tmp_path),
        "EVERGREEN_STORE__URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "EVERGREEN_PRIVACY__HASH": HASH,
        "EVERGREEN_SECURITY__KEY": KEY,
    }
    with pytest.raises(SettingsError, match="the store does not answer"):
        take_part(load(environ=away))
    with pytest.raises(SettingsError, match="comes from its store"):
        keys.open_privacy(load(environ=away))

    (tmp_path / "var" / "privacy.key").write_text("a" * 64)
    take_part(load(environ=away))
    assert hidden(load(environ=away))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SECURITY__KEY": "short"}, "too short"),
        ({"SECURITY__KEY": KEY, "SECURITY__FORMER_KEY": KEY}, "the same as `key`"),
        ({"SECURITY__FORMER_KEY": KEY}, "no `key`"),
    ],
)
def test_a_wrapping_key_that_protects_nothing_is_refused_and_never_shown(
    tmp_path: Path, given: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        load(environ={"EVERGREEN_HOME": str(tmp_path), **{f"EVERGREEN_{name}": value for name, value in given.items()}})

    assert all(value not in str(refused.value) for value in given.values() if len(value) > 10)


def test_a_wrapped_key_that_was_changed_or_put_elsewhere_does_not_open() -> None:
    wrapping = Wrapping(KEY)
    wrapped = wrapping.wrap(b"secret", "privacy")
    assert wrapping.unwrap(wrapped, "privacy") == b"secret" and wrapped != wrapping.wrap(b"secret", "privacy")

    for changed, name in ((wrapped[:-1] + b"\0", "privacy"), (wrapped, "session"), (b"", "privacy"), (b"x" * 9, "x")):
        with pytest.raises(WrongKey):
            wrapping.unwrap(changed, name)
    with pytest.raises(WrongKey):
        Wrapping(OTHER).unwrap(wrapped, "privacy")


def test_a_home_that_was_said_to_be_gone_is_refused_when_it_comes_back(home: HomeMaker, engine: sa.Engine) -> None:
    from training.homes import declare_gone

    one, two = home("one", SECURITY__KEY=KEY), home("two")
    token = management_token(one).value
    follow(engine, one, two)
    assert may(two, token)
    report_home(engine, HomeReport(home_id(one), "alpha", "alpha:1", "0", 1, "", 0, 0.0), 0.0)
    with engine.begin() as connection:
        connection.exec_driver_sql("update homes set seen_at = seen_at - 60")
    lease = Lease(engine, CONTROLLER, "two:1")
    assert lease.acquire() and lease.token is not None
    declare_gone(engine, "alpha", lease.token)

    with pytest.raises(HomeGone, match=r"Move .* away and start with an empty one"):
        take_part(one)
    follow(engine, two)
    assert not may(two, token)
