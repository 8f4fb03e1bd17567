"""Ports for servers of the tests."""

from __future__ import annotations

import random
import socket
from typing import Final

BELOW: Final = 32_000
"""From here on systems give ports to outgoing connections: one of those could have it before the server listens."""


def free_port() -> int:
    """A port of this machine that nobody listens on, and that no connection of another test will have meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, BELOW)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
