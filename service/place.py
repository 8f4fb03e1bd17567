"""Whether a server can start here: our packages are ours, and its port is free."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Final

from monitoring.errors import EvergreenError
from service.process import INSTALL_ROOT

PACKAGES: Final = ("service", "training", "monitoring")


class ServeError(EvergreenError, RuntimeError):
    """Raised when the server cannot be started as asked; the message says what to change."""


def check_packages(directory: Path) -> None:
    """Refuse a place where `service`, `training` or `monitoring` would not be ours.

    Raises `ServeError` naming the stranger and the remedy.
    """
    for name in PACKAGES:
        ours = INSTALL_ROOT / name / "__init__.py"
        if directory.resolve() != INSTALL_ROOT:
            for stranger in (directory / name / "__init__.py", directory / f"{name}.py"):
                if stranger.exists():
                    raise ServeError(
                        f"{stranger} would shadow evergreen's own package {name!r}: start evergreen in another "
                        "directory and name this one, `cd / && EVERGREEN_HOME="
                        f"{directory.resolve()} evergreen serve`, or rename your package"
                    )
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != ours:
            raise ServeError(
                f"package {name!r} resolves to {found}, not to evergreen's {ours}: install evergreen in an environment "
                "of its own (`python -m venv`), and keep other packages of that name off PYTHONPATH"
            )


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on. Raises `ServeError` with the reason."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ServeError(
                f"{host}:{port} cannot be listened on ({error.strerror}): another server runs there, "
                "or choose one with --port or [serve] port"
            ) from error


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def numeric_address(host: str) -> str:
    """The numeric address of a host: BentoML takes no names."""
    return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
