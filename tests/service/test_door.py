"""Whoever was in the queue is served, and whoever comes later is refused: nobody is reset."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.real_server import ROOT

CLOSER = """
import socket, sys
from service.serving.door import close_door
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
print("listening", flush=True)
sys.stdin.readline()
assert close_door() == 1
print("closed", flush=True)
sys.stdin.readline()
listener.settimeout(1)
answered = 0
while True:
    try:
        taken, _ = listener.accept()
    except TimeoutError:
        break
    taken.recv(10)
    taken.sendall(b"served")
    taken.close()
    answered += 1
listener.close()
print(answered, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")
def test_who_waits_in_the_queue_is_served_and_who_comes_later_is_refused(tmp_path: Path) -> None:
    port = free_port()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", CLOSER, str(port)], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        waiting = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(20)]
        server.stdin.write("\n")
        server.stdin.flush()
        assert server.stdout.readline() == "closed\n"

        late: list[OSError] = []

        def come_late() -> None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            except OSError as error:
                late.append(error)

        comer = threading.Thread(target=come_late)
        comer.start()
        for client in waiting:
            client.sendall(b"please")
        server.stdin.write("\n")
        server.stdin.flush()
        answers = [client.recv(10) for client in waiting]
        served = server.stdout.readline()
        comer.join()
        for client in waiting:
            client.close()

    assert answers == [b"served"] * 20
    assert served == "20\n"
    assert [type(error) for error in late] == [ConnectionRefusedError]
