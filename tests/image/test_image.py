"""The image, built and run: what is in it, who it runs as, what it may write, how it lives and ends."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.artefacts import example_record
from tests.image.conftest import ROOT, Image
from tests.ports import free_port
from tests.real_server import wait_until

SBOM = ROOT / "build" / "image" / "sbom.cdx.json"
ALIVE = ("python3", "-IS", "/opt/evergreen/alive.py")


def python(image: Image, home: Path, program: str) -> Any:
    """What a program in the image prints, as JSON."""
    return json.loads(image.run(home, "-c", program, entrypoint="python3"))


def test_it_says_its_size_and_what_it_was_made_of(image: Image, home: Path) -> None:
    (said,) = [line for line in image.log.splitlines() if "MB unpacked" in line]
    labels = json.loads(image.call("image", "inspect", image.name).stdout)[0]["Labels"]

    assert 100 < int(said.split(": ")[1].split()[0]) < 2_000
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}licenses"] == "Apache-2.0" and labels[f"{prefix}source"] == "https://example.org/evergreen"
    assert labels[f"{prefix}revision"].startswith(image.revision)
    assert image.run(home, "--version").startswith(f"evergreen {labels[f'{prefix}version']} ({image.revision[:12]}")


def test_its_bill_of_materials_names_every_distribution_in_it(image: Image, home: Path) -> None:
    bill = json.loads(SBOM.read_text())
    program = (
        "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    )
    installed = {(name.lower().replace("_", "-"), version) for name, version in python(image, home, program)}

    assert bill["bomFormat"] == "CycloneDX"
    named = {(one["name"].lower().replace("_", "-"), one["version"]) for one in bill["components"]}
    root = bill["metadata"]["component"]
    named.add((root["name"], root["version"]))
    assert len(installed) > 100 and installed <= named
    assert {"evergreen-serving", "evergreen-client"} <= {name for name, _ in installed}
    there = image.run(home, "/usr/share/evergreen/sbom.cdx.json", entrypoint="cat")
    assert json.loads(there) == bill


def test_it_has_neither_a_compiler_nor_an_installer_nor_the_index_it_was_built_from(image: Image, home: Path) -> None:
    found = image.run(
        home, "-c", "command -v pip pip3 uv gcc cc cpp ld make; python3 -c 'import pip'; ls /etc/pip.conf /etc/uv",
        entrypoint="sh", check=False,
    )  # fmt: skip
    assert "No module named 'pip'" in found
    assert not [line for line in found.splitlines() if line.startswith("/")], found
    history = image.call("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.name).stdout
    assert "index" not in history.lower() and "://" not in history.replace("https://example.org/evergreen", "")


def test_it_runs_as_a_user_without_rights_on_a_root_that_nobody_writes(image: Image, home: Path) -> None:
    script = (
        "id -u; id -g; for d in / /opt/evergreen /etc /data /tmp; do touch $d/x 2>/dev/null && echo wrote $d; done; "
    )
    script += "grep -E '^(CapEff|CapPrm|NoNewPrivs)' /proc/self/status;"

    said = image.run(home, "-c", script, entrypoint="sh").splitlines()

    assert said[:2] == ["10001", "10001"]
    assert [line for line in said if line.startswith("wrote")] == ["wrote /data", "wrote /tmp"]
    assert "CapEff:\t0000000000000000" in said and "NoNewPrivs:\t1" in said


class Running:
    """The image's own command, `evergreen serve`, in a container."""

    def __init__(self, image: Image, home: Path, **environ: str) -> None:
        self.image, self.port = image, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"SERVE__PORT": str(self.port), "DATA__FIRST": "700", "GATES__INFRA": "false", **environ}
        variables = [part for name, value in given.items() for part in ("--env", f"EVERGREEN_{name}={value}")]
        self.id = image.call("run", "--detach", *image.options(home), *variables, image.name).stdout.strip()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.image.call("exec", self.id, *command, check=False)

    def log(self) -> str:
        done = self.image.call("logs", self.id)
        return done.stdout + done.stderr

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.image.call("container", "inspect", self.id).stdout)[0]["State"]
        return found


@pytest.fixture
def running(image: Image, home: Path) -> Iterator[Running]:
    server = Running(image, home)
    yield server
    image.call("rm", "--force", "--time", "5", server.id, check=False)


def test_it_serves_is_seen_alive_and_ends_on_sigterm_with_every_row_stored(
    image: Image, home: Path, running: Running
) -> None:
    early = running.execute(*ALIVE)
    wait_until("readiness", running.ready, 420)
    answers = [
        httpx.post(f"{running.url}/predict", json={"records": [example_record()] * 100}, timeout=20) for _ in range(20)
    ]
    alive = running.execute(*ALIVE)
    elsewhere = running.execute("env", f"EVERGREEN_SERVE__PORT={free_port()}", *ALIVE)
    first = running.execute("cat", "/proc/1/comm").stdout.strip()
    began = time.monotonic()
    image.call("kill", "--signal", "TERM", running.id)
    wait_until("its end", lambda: not running.state()["Running"], 60)
    took = time.monotonic() - began

    assert {answer.status_code for answer in answers} == {200}, running.log()[-2000:]
    assert first in ("tini", "catatonit")
    assert (alive.returncode, elsewhere.returncode) == (0, 1), alive.stderr
    assert "does not answer" in elsewhere.stderr and early.returncode in (0, 1)
    assert running.state()["ExitCode"] == 0, running.log()[-2000:]
    assert took < 25 + 10  # stop_timeout_s, and a busy machine
    count = "import sqlite3, json; print(json.dumps(sqlite3.connect('/data/var/evergreen.db').execute("
    count += "'select count(*), count(distinct id) from predictions').fetchone()))"
    assert python(image, home, count) == [2000, 2000]
    assert not list((home / "var" / "spool").glob("*.se*"))


def test_the_health_check_is_the_one_that_was_tried(image: Image) -> None:
    config = json.loads(image.call("image", "inspect", image.name).stdout)[0]

    check = config.get("Healthcheck") or config["HealthCheck"]
    assert check["Test"] == ["CMD", *ALIVE]
    assert config["Config"]["Entrypoint"] == ["tini", "--", "evergreen"] and config["Config"]["Cmd"] == ["serve"]


def test_the_demo_inside_comes_to_its_good_end(image: Image, home: Path) -> None:
    done = image.call("run", "--rm", *image.options(home), image.name, "demo", check=False, timeout=900)

    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "requests failed" in done.stdout
