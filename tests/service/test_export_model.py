"""A version comes back as files: from a real registry, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monitoring.schema import FeatureSchema
from monitoring.store import open_store
from service.command.cli import app
from service.configuration import load
from tests.artefacts import sample_schema
from tests.wired import artefact
from training.artefact import PIPELINE, SCHEMA, TWIN
from training.lease import CONTROLLER, Lease
from training.registry import Registry
from training.trust import load_skops

__all__ = ["artefact"]  # a fixture

TOKEN = 1


@pytest.fixture
def registry(tmp_path: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A deployment in a folder, with the artefact as its version 1."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path / "home")})
    engine = open_store(settings.store_url)
    assert Lease(engine, CONTROLLER, "test", 600).acquire()
    found = Registry(engine, settings.models_dir, settings.model.name)
    assert found.register(artefact, origin="bootstrap", now=1.0, token=TOKEN) == 1
    return found


def test_a_version_is_given_back_as_it_was_registered(registry: Registry, artefact: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    done = CliRunner().invoke(app, ["models", "export", "1", "--to", str(to), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == [PIPELINE, TWIN, SCHEMA]
    for name in (PIPELINE, TWIN, SCHEMA):
        assert (to / name).read_bytes() == (artefact / name).read_bytes()
    schema, features, _ = sample_schema(50)
    assert FeatureSchema.from_json((to / SCHEMA).read_bytes()).names == schema.names
    assert load_skops(to / PIPELINE).predict_proba(features).shape == (50, 2)

    again = CliRunner().invoke(app, ["models", "export", "1", "--to", str(to)])
    assert (again.exit_code, "give another folder" in again.stderr) == (2, True)
    unknown = CliRunner().invoke(app, ["models", "export", "7", "--to", str(tmp_path / "other")])
    assert unknown.exit_code == 1 and "7" in unknown.stderr
    assert not (tmp_path / "other").exists()
