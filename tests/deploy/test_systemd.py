"""The unit is one that systemd takes, and it gives the server the time that its own settings ask for."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.configuration import load
from tests.deploy.manifests import DEPLOY

UNIT = DEPLOY / "systemd" / "evergreen.service"


def test_a_stop_has_the_time_that_the_server_takes_and_its_home_is_what_systemd_keeps(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service, settings = unit["Service"], load(environ={"EVERGREEN_HOME": str(tmp_path)})

    assert float(service["TimeoutStopSec"]) > settings.serve.stop_timeout_s + settings.serve.drain_timeout_s
    assert service["Environment"] == f"EVERGREEN_HOME=/var/lib/{service['StateDirectory']}"
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert service["ExecStart"].endswith("/bin/evergreen serve")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text().replace("/opt/evergreen/bin/evergreen", sys.executable))
    wrong = tmp_path / "wrong.service"
    wrong.write_text(there.read_text().replace("ProtectHome=", "ProtectedHome="))

    found = [
        subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
        for unit in (there, wrong)
    ]

    assert (found[0].returncode, found[0].stderr) == (0, "")
    assert "ProtectedHome" in found[1].stderr
