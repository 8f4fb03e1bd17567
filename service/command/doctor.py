"""`evergreen doctor`: checks this machine for what usually goes wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from service.configuration import load
from service.place import ServeError, check_packages, check_port
from service.process import DISTRIBUTION
from service.settings import SAMPLE, Settings, SettingsError
from training.source import is_path, load_source, shown

OLDEST_PYTHON: Final = (3, 11)
ENOUGH_DISK_BYTES: Final = 2 * 2**30
"""Models, snapshots and a day's record of a small service; below it the disk is the next thing to fail."""


class Finding(NamedTuple):
    check: str
    ok: bool
    found: str


def examine(config: Path | None = None) -> list[Finding]:
    """All checks, each with what was found. When the settings have an error, checks that need them are left out."""
    found = [_python(), *_packages()]
    try:
        settings = load(config)
    except SettingsError as error:
        return [*found, Finding("settings", False, str(error))]
    where = str(settings.config_file) if settings.config_file else "defaults: there is no evergreen.toml"
    checks: tuple[tuple[str, Callable[[Settings], str]], ...] = (
        ("data", _data), ("folder", _folder), ("disk", _disk), ("token", _token), ("labels", _labels),
        ("store", _store), ("port", _port),
    )  # fmt: skip
    found.append(Finding("settings", True, where))
    for name, check in checks:
        try:
            found.append(Finding(name, True, check(settings)))
        except Exception as error:  # whatever it is, it is the finding
            found.append(Finding(name, False, " ".join(str(error).split())[:300]))
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= OLDEST_PYTHON, f"{version} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    """Our three package names are generic: a folder of that name elsewhere would be imported instead."""
    try:
        check_packages(Path.cwd())
    except ServeError as error:
        yield Finding("packages", False, str(error))
    missing = [name for name in ("bentoml", "scikit-learn", "evidently", "onnxruntime") if not _version(name)]
    yield Finding(
        "packages", not missing, f"missing: {', '.join(missing)}" if missing else f"evergreen {_version(DISTRIBUTION)}"
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _data(settings: Settings) -> str:
    source = settings.data.source
    if source == SAMPLE:
        return "the built-in sample stream"
    if (
        not is_path(source) or not Path(source).is_file()
    ):  # a folder, a glob, a URL, a query: only reading it says whether it can be read
        return f"{shown(source)}, {len(load_source(source, columns=[settings.data.target])):,} rows"
    with Path(source).open("rb"):
        return f"{source}, {Path(source).stat().st_size:,} bytes"


def _folder(settings: Settings) -> str:
    place = _existing(settings.var)
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} is not writable: the record, the models and the token are kept there")
    return f"{settings.var}" if place == settings.var else f"{settings.var} (made at first start)"


def _disk(settings: Settings) -> str:
    free = shutil.disk_usage(_existing(settings.var)).free
    if free < ENOUGH_DISK_BYTES:
        raise OSError(f"only {free / 2**30:.1f} GB free at {settings.var}; a full disk loses rows of the record")
    return f"{free / 2**30:.0f} GB free"


def _token(settings: Settings) -> str:
    if settings.security.token.get_secret_value():
        return "from the settings"
    if not settings.token_file.exists():
        return "made at first start"
    mode = stat.S_IMODE(settings.token_file.stat().st_mode)
    if mode & 0o077:
        raise PermissionError(f"{settings.token_file} has mode {mode:o}: others can read it, `chmod 600` it")
    return str(settings.token_file)


def _labels(settings: Settings) -> str:
    """Whose labels models learn from: whoever may send labels decides what is in service tomorrow."""
    from service.keys import read

    trusted, plane = settings.gates.label_sources, settings.security.data_plane
    known = {token.name for token in read(settings.tokens_file) if "feedback" in token.scopes} | {"admin"}
    if strangers := [name for name in trusted if name not in known]:
        raise ValueError(
            f"[gates] label_sources names {strangers[0]!r}, which is no token that may send labels: "
            f"`evergreen token add {strangers[0]} --scope feedback`"
        )
    if trusted:
        return f"only labels of {', '.join(trusted)} judge and train"
    if plane == "open":
        raise ValueError(
            "anyone who reaches /feedback teaches the model: [security] data_plane is open and [gates] label_sources "
            'names nobody; `evergreen token add NAME --scope feedback`, then label_sources = ["NAME"]'
        )
    who = "every token's holder" if plane == "tokens" else "every program on this machine, and every token's holder,"
    return f"{who} teaches the model; [gates] label_sources narrows it"


def _store(settings: Settings) -> str:
    import sqlalchemy as sa

    url = sa.make_url(settings.store_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return f"{url.database} (made at first start)"
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("select 1"))
    finally:
        engine.dispose()
    return url.render_as_string(hide_password=True)


def _port(settings: Settings) -> str:
    from evergreen_client import Busy, Client, EvergreenClientError

    host, port = settings.serve.host, settings.serve.port
    try:
        check_port(host, port)
        return f"{host}:{port} is free"
    except ServeError:
        pass  # who is there?
    with Client(settings.address, timeout_s=5.0, retry_s=0) as client:
        try:
            client.wanted()
            return f"an Evergreen answers at {settings.address}"
        except Busy as error:
            return f"a service answers at {settings.address}: {error}"
        except EvergreenClientError:
            raise OSError(f"{host}:{port} is taken by another program: choose another [serve] port") from None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())
