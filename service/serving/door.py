"""Closing a listening socket without resetting anybody who has knocked already.

While a worker listens, the kernel shakes hands with clients by itself and lets them wait in a queue until a worker
takes them. Whoever is in that queue when the last process closes the socket gets a reset; and BentoML's supervisor,
which takes nobody, closes it seconds after the workers stopped taking. So the order is: nobody new gets in, the workers
take who is waiting, then the socket is closed. A client turned away at the door connects again and is refused, having
sent nothing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
import sys
from typing import Final

logger = logging.getLogger("evergreen.door")

SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_DROP_SYN: Final = (
    # (code, jump if true, jump if false, k) of classic BPF; a TCP socket's filter begins at the TCP header
    (0x30, 0, 0, 13),  # A = byte 13, the flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # SYN alone: a client that begins
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


def close_door() -> int:
    """Let no new connection into this process's listening TCP sockets; how many those are.

    Connections in their queues are still to be accepted. It holds for every process that shares such a socket, and
    cannot be undone here: only for a server that stops as a whole. Elsewhere than on Linux nothing is done.
    """
    if sys.platform != "linux":
        return 0
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    held = ctypes.create_string_buffer(program)
    closed = 0
    for listener in _listeners():
        with listener:
            given = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(held))
            try:
                listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, given)
            except OSError as error:  # a sandbox without filters
                logger.warning("new connections cannot be turned away (%s): the last ones may be reset", error)
                continue
            closed += 1
    return closed


def _listeners() -> list[socket.socket]:
    """Copies of the listening TCP sockets among this process's descriptors."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # no socket, or gone
        tcp = copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM
        if tcp and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(copy)
        else:
            copy.close()
    return found
