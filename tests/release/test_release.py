"""`make release`, run in a clone of what is committed; by `make test-release`, as it fetches its tools."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def why_not() -> str:
    """Why nothing can be released from here, "" when it can: a release is of a revision."""
    if shutil.which("git") is None:
        return "there is no git"
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return "" if asked.returncode == 0 else f"git knows no revision here: {asked.stderr.strip()}"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def released(folder: Path, *, umask: int = -1, **environ: str) -> Path:
    """The `dist` that `deploy/release.sh` makes in a clone at `folder`."""
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True, umask=umask)
    done = subprocess.run(
        ["deploy/release.sh"],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": "", **environ},
        umask=umask,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole release: wheels tried in fresh environments, and their bills of materials."""
    return released(tmp_path_factory.mktemp("release") / "clone")


def told(wheel: Path) -> Any:
    """A wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def same_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_has_two_wheels_of_one_version_their_bills_and_their_digests(dist: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    server, client = sorted(dist.glob("*.whl"), reverse=True)
    digests = {name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in os.listdir(dist)}
    del digests["SHA256SUMS"]

    assert [(told(each)["Name"], told(each)["Version"]) for each in (server, client)] == [
        ("evergreen-serving", version),
        ("evergreen-client", version),
    ]
    assert f"evergreen-client=={version}" in told(server).get_all("Requires-Dist")
    assert sorted(digests) == sorted([
        server.name,
        client.name,
        f"evergreen_serving-{version}.cdx.json",
        f"evergreen_client-{version}.cdx.json",
    ])  # fmt: skip
    assert (dist / "SHA256SUMS").read_text().split() == [
        part for name in sorted(digests) for part in (digests[name], name)
    ]


@pytest.mark.parametrize("name", ["evergreen_serving", "evergreen_client"])
def test_a_bill_of_materials_names_every_dependency_with_the_version_that_was_tried(dist: Path, name: str) -> None:
    (wheel,), (bill,) = dist.glob(f"{name}-*.whl"), dist.glob(f"{name}-*.cdx.json")
    found = json.loads(bill.read_text())  # cyclonedx-py has held it against CycloneDX' schema: deploy/sbom.sh
    needed = {
        same_name(re.match(r"[\w.-]+", each)[0])  # type: ignore[index]
        for each in told(wheel).get_all("Requires-Dist")
        if "extra ==" not in each and "win32" not in each.replace("!= 'win32'", "").replace('!= "win32"', "")
    }
    components = {same_name(each["name"]): each.get("version") for each in found["components"]}

    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["name"] == told(wheel)["Name"]
    assert len(needed) > 1 and needed - components.keys() == set()
    assert all(components.values())
    assert {each["type"] for each in found["components"]} == {"library"}


def test_the_same_revision_gives_the_same_bytes_elsewhere_and_with_another_umask(dist: Path, tmp_path: Path) -> None:
    again = released(tmp_path / "a folder of another name" / "clone", umask=0o077, WHEELS_ONLY="yes")

    assert {each.name: each.read_bytes() for each in again.glob("*.whl")} == {
        each.name: each.read_bytes() for each in dist.glob("*.whl")
    }


def test_the_wheel_says_its_revision_and_has_the_compiled_trees(dist: Path) -> None:
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with zipfile.ZipFile(next(dist.glob("evergreen_serving-*.whl"))) as wheel:
        assert wheel.read("service/revision.txt").decode() == revision
        assert "training/_trees.abi3.so" in wheel.namelist()
