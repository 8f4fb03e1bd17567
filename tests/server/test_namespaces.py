"""Three replicas on hosts of their own (network namespaces), with a PostgreSQL and an S3: what becomes of trouble."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.hosts import SHORT, ended_in_order, run
from service.process import alive
from tests.hosts import Network, NotPermitted
from tests.real_server import wait_until


@pytest.fixture(autouse=True)
def _permitted() -> None:
    try:
        with Network("probe"):
            pass
    except NotPermitted as error:
        pytest.skip(str(error))


def test_three_hosts_in_trouble_lose_no_row_and_are_led_by_one_hand() -> None:
    told: list[str] = []

    with ended_in_order():
        lines = run(
            minutes=0.5,
            seed=3,
            faults=len(SHORT),
            kinds=SHORT,
            lease_s=4.0,
            check_s=600.0,
            lasts_s=(3.0, 5.0),
            slack=8.0,
            say=told.append,
        )

    assert lines and all(holds for _, holds in lines), "\n".join(told)


def test_nothing_of_the_hosts_is_left_by_a_process_that_was_killed() -> None:
    killed = (
        "import os, signal, subprocess\n"
        "from tests.hosts import Network\n"
        "with Network('one') as network:\n"
        "    there = subprocess.Popen([*network['one'].prefix, 'sleep', '600'])\n"
        "    print(network['one'].namespace, there.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    said = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True, timeout=180)

    namespace, pid = said.stdout.split()
    wait_until("the namespace's end", lambda: namespace not in subprocess.check_output(["ip", "netns"], text=True))
    wait_until("the process's end", lambda: not alive(int(pid)))
