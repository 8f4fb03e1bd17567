"""The image as `make image` builds it, on a base made of Debian's packages: no registry is needed for it.

Skipped with the reason where nothing can build or run a container.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
RUNS = ("python3", "ca-certificates", "libgomp1", "tini")
BUILDS = ("python3-venv", "python3-dev", "gcc")
SECRETS = {"ca": "/etc/ssl/certs/ca-certificates.crt", "pip": "/etc/pip.conf"}
"""How this machine reaches its package index; they are mounted while the image is built, and are not in it."""


LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
"""Podman's own are higher than what may be asked for without CAP_SYS_RESOURCE."""


@dataclass(frozen=True)
class Image:
    """The built image, and the podman that has it."""

    podman: tuple[str, ...]
    name: str
    log: str
    """What the build printed."""
    revision: str
    """Of the checkout when it was built."""

    def call(self, *arguments: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self.podman, *arguments], capture_output=True, text=True, check=False, timeout=timeout)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def options(self, home: Path) -> list[str]:
        """As README says it is run; loopback of this machine is its network, so that nothing is published."""
        options = "--read-only --read-only-tmpfs=false --tmpfs /tmp:rw,mode=1777 --cap-drop ALL --network host"
        options += " --security-opt no-new-privileges --no-healthcheck --env EVERGREEN_SERVE__HOST=127.0.0.1"
        return [*options.split(), *LIMITS, "--volume", f"{home}:/data"]

    def run(self, home: Path, *command: str, entrypoint: str = "", check: bool = True, timeout: float = 600) -> str:
        """What a command in a container of its own printed, its errors too."""
        enters = ["--entrypoint", entrypoint] if entrypoint else []
        done = self.call("run", "--rm", *self.options(home), *enters, self.name, *command, check=check, timeout=timeout)
        return done.stdout + done.stderr


def sh(*command: str | Path, timeout: float = 600) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        pytest.skip(f"{command[0]} does not work here: {(done.stderr or done.stdout).strip()[-300:]}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--place", type=Path, help="folder that keeps the bases for the next run (default: none is kept)")


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a real disk, with podman's storage; gone afterwards unless it was given."""
    if (kept := request.config.getoption("--place")) is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    folder = Path(tempfile.mkdtemp(prefix="evergreen-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def podman(place: Path) -> tuple[str, ...]:
    if os.geteuid():
        pytest.skip("only root may make a base with debootstrap")
    for tool in ("podman", "debootstrap", "runc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install podman debootstrap runc")
    storage = ("--root", f"{place}/storage", "--runroot", f"{place}/run", "--cgroup-manager", "cgroupfs")
    return ("podman", *storage, "--runtime", "runc")


@pytest.fixture(scope="session")
def bases(podman: tuple[str, ...], place: Path) -> tuple[str, str]:
    """(what the image stands on, what it is built on): the second has a compiler besides."""
    for name, packages in (("base", RUNS), ("build-base", (*RUNS, *BUILDS))):
        folder = place / name
        if not subprocess.run([*podman, "image", "exists", f"localhost/evergreen-{name}"], check=False).returncode:
            continue  # of an earlier run in this place
        cache = place / "packages"
        cache.mkdir(exist_ok=True)
        include = f"--include={','.join(packages)}"
        sh("debootstrap", "--variant=minbase", f"--cache-dir={cache}", include, SUITE, folder)
        sh("tar", "-C", folder, "--exclude=./var/cache/apt/archives/*", "-cf", f"{folder}.tar", ".")
        shutil.rmtree(folder)
        sh(*podman, "import", "-q", f"{folder}.tar", f"localhost/evergreen-{name}")
        Path(f"{folder}.tar").unlink()
    return "localhost/evergreen-base", "localhost/evergreen-build-base"


@pytest.fixture(scope="session")
def image(podman: tuple[str, ...], bases: tuple[str, str]) -> Image:
    """Built by the very script of `make image`."""
    name = "localhost/evergreen:test"
    environ = {**os.environ, "IMAGE": name, "BASE": bases[0], "BUILD_BASE": bases[1], "BUILDER": " ".join(podman)}
    environ |= {"SOURCE": "https://example.org/evergreen"}
    options: list[str] = ["--network", "host", "--isolation", "chroot", "--layers=false"]
    for secret, path in SECRETS.items():
        if Path(path).exists():
            options += ["--secret", f"id={secret},src={path}"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    built = subprocess.run(
        [ROOT / "deploy" / "image.sh", *options], env=environ, capture_output=True, text=True, check=False, timeout=900
    )
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    print(built.stdout.splitlines()[-1])
    return Image(podman, name, built.stdout, head.stdout.strip())


@pytest.fixture
def home(place: Path) -> Iterator[Path]:
    """A volume for /data, owned by the image's user as a fresh named volume is."""
    folder = Path(tempfile.mkdtemp(prefix="data-", dir=place))
    os.chown(folder, 10001, 10001)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def lines(text: str) -> Sequence[str]:
    return text.strip().splitlines()
