"""What the packages of server and client import is declared, and what is declared is used."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from tests.test_structure import PACKAGES, ROOT, imports, ours

CLIENT = "evergreen-client"
"""From the folder `client/` of this checkout: a distribution of its own, and no foreign one."""

NOT_IMPORTED = {
    "protobuf": "a bound for skl2onnx",
    "uvloop": "uvicorn takes it when it is there",
    "xgboost-cpu": "a pushed file's types name it; skops imports it",
    "lightgbm": "a pushed file's types name it; skops imports it",
    "s3fs": "fsspec loads it for s3://",
}
NAMESPACED = {
    "opentelemetry.trace": "opentelemetry-api",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
"""Packages of a namespace that several distributions share."""
FRAMES = {"numpy", "pandas"}
"""What the client imports only for a caller who has a DataFrame, and so has them."""
INSIDES = ("uvicorn", "prometheus-client", "scikit-learn", "bentoml", "evidently")
"""Libraries of which we use more than they promise: `tests/test_insides.py` says what."""


def project(folder: str = ".") -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def plain(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(folder: str = ".") -> dict[str, str]:
    """Name of each declared distribution -> its bounds."""
    return _bounds(project(folder)["project"]["dependencies"])


def extras() -> dict[str, str]:
    """The same of what only some need: the extras of the distribution."""
    lines = project()["project"].get("optional-dependencies", {}).values()
    return _bounds([line for each in lines for line in each])


def _bounds(lines: list[str]) -> dict[str, str]:
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?([^;]*)", line) for line in lines)
    return {plain(match[1]): match[2] for match in found if match}


def imported(*, client: bool = False) -> set[str]:
    """The foreign distributions that the three packages import, or the client."""
    sources = [source for path, source in ours().items() if path.startswith("client/") == client]
    names = {name for source in sources for name in imports(source)}
    shared = {name for name in names if name.startswith("opentelemetry.")}
    found = {
        next(owner for package, owner in NAMESPACED.items() if f"{name}.".startswith(f"{package}.")) for name in shared
    }
    tops, provided = {name.partition(".")[0] for name in names - shared}, packages_distributions()
    return found | {plain(provided[top][0]) for top in tops - {*PACKAGES, *sys.stdlib_module_names}}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    assert imported() == (requirements() | extras()).keys() - NOT_IMPORTED.keys() - {CLIENT}
    assert imported(client=True) - FRAMES == requirements("client").keys()


def test_server_and_client_are_of_one_version() -> None:
    version = project()["project"]["version"]

    assert (requirements()[CLIENT], project("client")["project"]["version"]) == (f"=={version}", version)


@pytest.mark.parametrize("name", INSIDES)
def test_a_library_whose_insides_we_use_has_an_upper_bound(name: str) -> None:
    assert re.search(r"<|==", requirements()[name])


def test_the_locks_name_no_index_and_agree() -> None:
    texts = [(ROOT / name).read_text() for name in ("requirements.lock", "deploy/requirements.lock")]
    whole, deployed = (set(re.findall(r"^([\w.-]+==[^\s\\]+)", text, re.M)) for text in texts)

    assert not any("://" in text or "--index" in text for text in texts)
    assert len(deployed) > 50 and deployed <= whole
    assert not any(f"{CLIENT}==" in text or f"{CLIENT} @" in text for text in texts)
    assert requirements().keys() - {CLIENT} <= {plain(pin.partition("==")[0]) for pin in deployed}
    assert extras().keys() <= {plain(pin.partition("==")[0]) for pin in whole}
    assert not extras().keys() & {plain(pin.partition("==")[0]) for pin in deployed}  # a plain install stays small
