"""`training.pipeline`: a function of the user's own decides what is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from monitoring.schema import FeatureSchema
from tests.training.test_search import job
from tests.world import history
from training.artefact import verify
from training.data import Snapshot, snapshot
from training.fitting import refit
from training.job import run
from training.pipeline import predict
from training.spec import JobResult
from training.split import TrainPolicy
from training.subprocess_job import subprocess_job
from training.trust import load_pipeline

PACKAGE = """
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def build(schema, seed):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    words = OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((numbers, schema.numeric_names), (words, schema.categorical_names))
    return make_pipeline(columns, LogisticRegression(random_state=seed))


def nothing(schema, seed):
    return {"a": 1}


def breaks(schema, seed):
    raise KeyError("no such column")


def cannot_take_gaps(schema, seed):
    return LogisticRegression()


number = 3
"""


@pytest.fixture
def package(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A folder with a package in it, as PYTHONPATH would name it, and the package's name: each test has its own."""
    name = f"mypkg{abs(hash(request.node.name))}"
    folder = tmp_path / "site" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "models.py").write_text(PACKAGE)
    return tmp_path / "site", name


def source(tmp_path: Path) -> tuple[FeatureSchema, Snapshot, Any]:
    schema, frame = history(600, 0)
    return schema, snapshot(frame, tmp_path), frame[list(schema.names)]


def test_the_training_process_builds_it_from_pythonpath_and_it_is_served_as_onnx(
    tmp_path: Path, package: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = package
    monkeypatch.setenv("PYTHONPATH", str(folder))
    schema, data, features = source(tmp_path)
    spec = job(schema, data, tmp_path / "v1" / "artefact", training={"pipeline": f"{name}.models:build", "trials": 50})
    result = subprocess_job(spec, timeout_s=120)
    assert result.ok, result.error
    manifest = verify(tmp_path / "v1" / "artefact")
    assert manifest.parameters == {"family": "own", "pipeline": f"{name}.models:build", "package": ""}
    assert manifest.estimator == "LogisticRegression" and manifest.twin is not None
    assert manifest.data.search is None and manifest.data.trials == ()  # it decides everything: nothing is searched
    monkeypatch.syspath_prepend(str(folder))
    again = refit(manifest, data.path, schema)
    served = load_pipeline(tmp_path / "v1" / "artefact")
    assert np.array_equal(predict(again, features, schema), predict(served, features, schema))


def trained(tmp_path: Path, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> JobResult:
    monkeypatch.syspath_prepend(str(folder))
    schema, data, _ = source(tmp_path)
    return run(job(schema, data, tmp_path / "v1", training={"pipeline": name}))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("models:absent", r"models.py\) has no function 'absent'"),
        ("models:number", r"has no function 'number'"),
        ("absent:build", r"there is no module '\w+\.absent'; .*install the package into the environment .*PYTHONPATH"),
        ("models:nothing", r"the function returned dict, which has no `fit` or no `predict_proba`"),
        ("models:breaks", r"the function raised KeyError: 'no such column'"),
        ("models:cannot_take_gaps", r"its `fit` raised ValueError: could not convert string to float"),
    ],
)
def test_what_cannot_be_trained_is_told_with_what_to_do(
    tmp_path: Path, package: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, named: str, said: str
) -> None:
    folder, name = package
    result = trained(tmp_path, folder, f"{name}.{named}", monkeypatch)
    assert not result.ok and result.error is not None
    with pytest.raises(AssertionError, match=rf"training\.pipeline {name}\.{named}: .*{said}"):
        raise AssertionError(result.error)


def test_a_package_that_cannot_itself_be_imported_says_why(
    tmp_path: Path, package: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = package
    (folder / name / "broken.py").write_text("import a_package_nobody_has\n")
    result = trained(tmp_path, folder, f"{name}.broken:build", monkeypatch)
    assert result.error is not None and "ModuleNotFoundError: No module named 'a_package_nobody_has'" in result.error
    assert f"{name}.broken" not in sys.modules


def test_the_distribution_that_brought_it_stands_in_the_manifest(tmp_path: Path) -> None:
    from training.own_pipeline import own_parameters

    assert own_parameters("sklearn.pipeline:make_pipeline").package.startswith("scikit-learn 1.")


@pytest.mark.parametrize("name", ["mypkg", "mypkg.module", "my-pkg:build", "mypkg:build()", "mypkg:a.b", ":build"])
def test_what_names_no_function_is_refused_with_the_form(name: str) -> None:
    with pytest.raises(ValidationError, match=r"names no function: write `mypkg\.module:function`"):
        TrainPolicy(pipeline=name)
