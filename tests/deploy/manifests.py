"""What `deploy/kubernetes` becomes, as Kubernetes would get it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("sqlite-one", "postgres-s3")

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """The resources of an overlay; the test is skipped where no kustomize is there to ask."""
    command = next((c for c in (("kustomize", "build"), ("kubectl", "kustomize")) if shutil.which(c[0])), None)
    if command is None:
        pytest.skip("neither kustomize nor kubectl is here (Debian: apt-get install kubernetes-client)")
    built = subprocess.run([*command, KUBERNETES / "overlays" / overlay], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return tuple(yaml.safe_load_all(built.stdout))


def drain_job() -> tuple[Manifest, ...]:
    """What stores the rows of a replica that was scaled away: a job and what it may reach."""
    return tuple(yaml.safe_load_all((KUBERNETES / "drain-job.yaml").read_text()))


def the(kind: str, manifests: tuple[Manifest, ...], name: str = "evergreen") -> Manifest:
    """The one resource of this kind and name."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].startswith(name)]
    return found
