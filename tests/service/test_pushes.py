"""What is told at once of a pushed file, by the real front with a real store behind it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import re
import zipfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import xgboost
from onnx import helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from monitoring.store import connect
from service.serving.front import Front
from service.serving.worker import Worker
from tests.artefacts import sample_schema
from tests.fronts import nothing_beyond, post, run
from tests.wired import add, artefact, worker_with_store, working
from training.admission import Pushed, problem_of
from training.artefact import SCHEMA
from training.export import export
from training.lease import CONTROLLER, Lease
from training.registry import Registry
from training.trust import UntrustedModel, load_skops

__all__ = ["artefact", "worker_with_store"]  # fixtures

TOKEN = 1


class Mark:
    """Would leave a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def own_function(values: Any) -> Any:
    return values


def pipeline(final: Any = None, leave_out: str = "", labels: Any = None) -> Any:
    """What a user would push: scaled and imputed numbers, encoded categories; of the sample's schema."""
    schema, features, truth = sample_schema()
    numbers = [name for name in schema.numeric_names if name != leave_out]
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            ("words", OneHotEncoder(handle_unknown="ignore"), list(schema.categorical_names)),
        ]
    )
    final = LogisticRegression(max_iter=500) if final is None else final
    features = features.drop(columns=leave_out) if leave_out else features
    return make_pipeline(columns, final).fit(features, truth if labels is None else labels(truth))


def words_for_flags() -> Any:
    """A pipeline that was fitted to "True" and "False" where requests bring numbers."""
    schema, features, truth = sample_schema()
    flag = next(feature.name for feature in schema.features if feature.kind == "boolean")
    encoded = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    columns = ColumnTransformer([("flag", encoded, [flag])])
    return make_pipeline(columns, LogisticRegression()).fit(
        features.assign(**{flag: (features[flag] > 0).astype(str)}), truth
    )


def graph(names: dict[str, str] | None = None, classes: str = "") -> bytes:
    """The pipeline as an ONNX file with one input a feature; `names` renames inputs."""
    schema, _, _ = sample_schema()
    model = pipeline()
    kinds = {name: FloatTensorType if name in schema.numeric_names else StringTensorType for name in schema.names}
    inputs = [(name, kinds[name]([None, 1])) for name in schema.names]
    found = convert_sklearn(model, initial_types=inputs, options={id(model.steps[-1][1]): {"zipmap": False}})
    for old, new in (names or {}).items():
        for node in found.graph.node:
            node.input[:] = [new if given == old else given for given in node.input]
        next(one for one in found.graph.input if one.name == old).name = new
    if classes:
        helper.set_model_props(found, {"classes": classes})
    content: bytes = found.SerializeToString()
    return content


def crafted(schema: Any, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", json.dumps(schema))
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def bomb() -> bytes:
    """A file that unpacks to 10 GB of zeros; its directory names the same compressed bytes many times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", json.dumps({"__loader__": "ObjectNode"}))
        archive.writestr("0.npy", b"\0" * 10**7)
        first = archive.getinfo("0.npy")
        for number in range(1, 1000):
            again = copy.copy(first)
            again.filename = f"{number}.npy"
            archive.filelist.append(again)
    return file.getvalue()


def without_libraries(model: bytes, version: str) -> bytes:
    import sklearn

    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["schema.json"] = members["schema.json"].replace(sklearn.__version__.encode(), version.encode())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def push(worker: Worker, model: bytes, **headers: str) -> Any:
    token = add(worker, "ci", "push")
    given = {"authorization": f"Bearer {token}", **headers}
    return run(Front(nothing_beyond, lambda: worker), ("POST", "/manage/models", {"content": model, "headers": given}))[
        0
    ]


@pytest.fixture
def championed(worker: Worker, artefact: Path) -> Worker:
    """A worker whose registry has a champion of the sample's schema."""
    engine = connect(worker.settings.store_url)
    assert Lease(engine, CONTROLLER, "test", 600).acquire()
    registry = Registry(engine, worker.settings.models_dir, worker.settings.model.name)
    version = registry.register(artefact, origin="bootstrap", now=1.0, token=TOKEN)
    registry.announce(version, TOKEN)
    registry.flip(version, TOKEN)
    engine.dispose()
    return worker


@pytest.mark.parametrize("final", [None, RandomForestClassifier(20, random_state=0)], ids=["linear", "forest"])
def test_a_model_of_scikit_learn_that_fits_is_queued(championed: Worker, final: Any) -> None:
    model = skops.io.dumps(pipeline(final))
    digest = b64encode(hashlib.sha256(model).digest()).decode()
    answer = push(championed, model, **{"content-digest": f"sha-256=:{digest}:"})
    assert answer.status_code == 202, answer.text
    assert len(list(championed.settings.pushes_dir.iterdir())) == 1


GOOD = skops.io.dumps(pipeline())
REFUSED: list[tuple[str, bytes, str]] = [
    ("pickle", pickle.dumps(Mark("was_run")), "not a skops file .*pickle and joblib files are never loaded"),
    ("truncated", GOOD[: len(GOOD) // 2], "not a skops file"),
    ("bomb", bomb(), "would unpack to 1000000[0-9]+: .*zip bomb"),
    (
        "damaged",
        GOOD[:300] + bytes(byte ^ 1 for byte in GOOD[300:400]) + GOOD[400:],
        "cannot be loaded by skops .*: Bad",
    ),
    ("no schema", crafted({}), r"not a skops file \(its schema.json has no __loader__\)"),
    (
        "own function",
        skops.io.dumps(make_pipeline(SelectKBest(own_function), LogisticRegression())),
        r"types that are not trusted: .*\.own_function: .*trusted_types`",
    ),
    (
        "function of scikit-learn",
        skops.io.dumps(pipeline(make_pipeline(SelectKBest(f_classif, k=2), LogisticRegression()))),
        r"not trusted: sklearn.feature_selection._univariate_selection.f_classif: ",
    ),
    (
        "a call",
        crafted({"__loader__": "FunctionNode", "__module__": "os", "__class__": "system", "protocol": 0}),
        "not trusted: os.system",
    ),
    (
        "boosting",
        skops.io.dumps(xgboost.XGBClassifier(n_estimators=2).fit([[0.0], [1.0]], [0, 1])),
        "not trusted: xgboost.core.Booster, xgboost.sklearn.XGBClassifier: .*add 'xgboost' to the setting "
        "`security.trusted_packages`",
    ),
    ("half a graph", graph()[:-300], "not a valid ONNX file"),
    ("another graph", graph({"income": "wage"}), "does not take the features income; it wants features .*: wage"),
    ("other classes of a graph", graph(classes='["no", "yes"]'), r"its classes are \['no', 'yes'\]"),
    ("other release", without_libraries(GOOD, "1.2.0"), "was written with scikit-learn 1.2.0, this service has"),
    ("feature missing", skops.io.dumps(pipeline(leave_out="income")), "does not take the features income"),
    (
        "other classes",
        skops.io.dumps(pipeline(labels=lambda truth: np.where(truth == truth[0], "a", "b"))),
        "its classes are .*GET /schema",
    ),
    (
        "row refused",
        skops.io.dumps(words_for_flags()),
        r"cannot answer a record: 'columntransformer' > 'flag' > .*OneHotEncoder does not take column 'owns_home' "
        r"\(value .*; booleans come as the numbers 1.0 and 0.0 \(float32\)\): Found unknown categories",
    ),
    (
        "no classifier",
        skops.io.dumps(StandardScaler().fit([[0.0]])),
        r"it was fitted to 1 feature\(s\), requests have 14: .*GET /schema",
    ),
]


@pytest.mark.parametrize(("model", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_become_a_version_is_refused_at_once(
    championed: Worker, model: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = push(championed, model)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert re.search(said, error), error
    assert str(championed.settings.pushes_dir) not in error
    assert list(championed.settings.pushes_dir.iterdir()) == []
    assert not list(tmp_path.rglob("was_run"))


def test_a_graph_that_fits_is_queued_with_the_time_of_its_newest_row(championed: Worker) -> None:
    token = add(championed, "ci", "push")
    given = {"content": graph(), "headers": {"authorization": f"Bearer {token}"}}
    front = Front(nothing_beyond, lambda: championed)
    good, odd, late = (
        run(front, ("POST", f"/manage/models?trained_until={until}", given))[0]
        for until in ("2026-01-31T12:00:00Z", "soon", "2300-01-01")
    )
    assert good.status_code == 202, good.text
    assert (odd.status_code, late.status_code) == (400, 400)
    assert "expected seconds since 1970 or an ISO 8601 time" in odd.json()["error"]
    assert "yet to come" in late.json()["error"]


def test_a_package_that_is_trusted_and_not_installed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.skops"
    path.write_bytes(crafted({"__loader__": "ObjectNode", "__module__": "house_x.y", "__class__": "Z", "protocol": 0}))
    said = problem_of(Pushed(path=str(path), schema=None, trusted=("house_x.*",)))
    assert "needs house_x, which is trusted and not installed here" in said
    assert "pip install house_x" in said


def test_a_trusted_package_gives_what_it_defines_and_nothing_it_has_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "house_y.py").write_text("from os import system\n\ndef twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {"__loader__": "FunctionNode", "__module__": "house_y", "protocol": 2}
    for name in ("twice", "system"):
        (tmp_path / f"{name}.skops").write_bytes(crafted({**node, "__class__": name}))
    trusted = ("house_y.*",)
    assert load_skops(tmp_path / "twice.skops", trusted)(2) == 4
    with pytest.raises(UntrustedModel, match=r"house_y\.system"):
        load_skops(tmp_path / "system.skops", trusted)


def test_a_body_that_changed_on_its_way_is_refused(championed: Worker) -> None:
    answer = push(championed, GOOD, **{"content-digest": "sha-256=:AAAA:"})
    assert answer.status_code == 400
    assert "its Content-Digest says AAAA: send it again" in answer.json()["error"]


def test_a_model_that_wants_too_much_memory_is_refused_and_says_so(tmp_path: Path, artefact: Path) -> None:
    (tmp_path / "m.skops").write_bytes(GOOD)
    said = problem_of(Pushed(path=str(tmp_path / "m.skops"), schema=str(artefact / SCHEMA), memory_mb=80))
    assert "memory" in said.lower()


def test_what_takes_too_long_is_left_to_the_run(tmp_path: Path, artefact: Path) -> None:
    (tmp_path / "m.skops").write_bytes(GOOD)
    asked = Pushed(path=str(tmp_path / "m.skops"), schema=str(artefact / SCHEMA))
    assert problem_of(asked, longest_s=0.01) == ""
    assert problem_of(asked) == ""


@pytest.mark.parametrize("final", [None, RandomForestClassifier(30, random_state=0)], ids=["linear", "forest"])
def test_a_pushed_model_answers_as_scikit_learn_does(tmp_path: Path, final: Any) -> None:
    schema, features, _ = sample_schema()
    model = pipeline(final)
    skops.io.dump(model, tmp_path / "m.skops")
    export(load_skops(tmp_path / "m.skops"), schema, tmp_path / "v1", check_frame=features, manifest={"name": "x"})
    flags = {feature.name for feature in schema.features if feature.kind == "boolean"}
    records = [
        {name: None if value != value else bool(value) if name in flags else value for name, value in row.items()}
        for row in features.head(200).to_dict("records")
    ]
    with working(tmp_path / "home", tmp_path / "v1") as worker:
        answer = post(Front(nothing_beyond, lambda: worker), "/predict", {"records": records}).json()
    expected = model.predict_proba(features.head(200))
    np.testing.assert_allclose(np.array(answer["probabilities"]), expected, atol=1e-5)
    assert answer["predictions"] == model.predict(features.head(200)).tolist()
