"""Models of every form that can be pushed, through a real server: promoted, and answering as where they were fitted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from service import sample
from service.command.traffic import replay_traffic
from tests.real_server import SMALL, Server, wait_until
from training.trees import is_built

PACKAGE = "house_features"
TRANSFORMER = '''
"""A package of the pusher's own."""
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin


class Signed(TransformerMixin, BaseEstimator):
    """Logarithm of the size, with the sign kept."""

    def fit(self, X, y=None):
        self.n_features_in_ = np.shape(X)[1]
        return self

    def transform(self, X):
        X = np.asarray(X, dtype=np.float32)
        return np.sign(X) * np.log1p(np.abs(X))

    def get_feature_names_out(self, names=None):
        return names
'''
NUMBERS = [name for name in sample.FEATURES if name not in sample.CATEGORICAL]
WORDS = list(sample.CATEGORICAL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the package is installed, for this process and for the server's."""
    folder = tmp_path_factory.mktemp("site")
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").write_text(TRANSFORMER)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop(PACKAGE, None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, site: Path, trained: Callable[[Path], Path]) -> Iterator[Server]:
    server = Server(
        trained(tmp_path_factory.mktemp("home")),
        environ={"PYTHONPATH": str(site)},
        SERVE__WORKERS="1",
        **SMALL,
        TRAINING__LAST_FIT="false",
        GATES__MAX_LATENCY_RATIO="1000000",  # a busy machine says nothing about it
        SCHEDULE__CHECK_INTERVAL_S="86400",
        ADAPT__ENABLED="false",
        SECURITY__TRUSTED_PACKAGES=f'["xgboost", "lightgbm", "{PACKAGE}"]',
    )
    try:
        server.start().wait_ready()
        frame = sample.frame(1500, start=sample.TRAINING_ROWS + 10_000)
        assert replay_traffic(server.url, frame, target=sample.TARGET, rate=0, keep_answers=False).ok
        yield server
    finally:
        server.end()


def features(rows: int, seed: int = 0) -> tuple[Any, Any]:
    frame = sample.training_frame(rows, seed=seed)
    found = frame[list(sample.FEATURES)]
    booleans = found.select_dtypes(bool).columns
    return found.astype(dict.fromkeys(booleans, np.float32)).astype(dict.fromkeys(NUMBERS, np.float32)), frame[
        sample.TARGET
    ]


def fitted(final: Any, numbers: Any = "passthrough", words: Any = None) -> Any:
    words = words or OneHotEncoder(handle_unknown="ignore")
    found, target = features(8000)
    columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("words", words, WORDS)])
    return make_pipeline(columns, final).fit(found, target)


def forest() -> Any:
    return fitted(RandomForestClassifier(30, min_samples_leaf=5, random_state=0))


def linear() -> Any:
    return fitted(LogisticRegression(max_iter=1000), make_pipeline(SimpleImputer(), StandardScaler()))


def codes() -> Any:
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)


def of_xgboost() -> Any:
    return fitted(xgboost.XGBClassifier(n_estimators=60, max_depth=4), words=codes())


def of_lightgbm() -> Any:
    return fitted(lightgbm.LGBMClassifier(n_estimators=60, verbose=-1), words=codes())


def custom() -> Any:
    signed = importlib.import_module(PACKAGE).Signed()
    return fitted(LogisticRegression(max_iter=1000), make_pipeline(SimpleImputer(), signed, StandardScaler()))


def as_onnx(pipeline: Any) -> bytes:
    inputs = [
        (name, StringTensorType([None, 1]) if name in WORDS else FloatTensorType([None, 1])) for name in sample.FEATURES
    ]
    converted = convert_sklearn(pipeline, initial_types=inputs, options={id(pipeline.steps[-1][1]): {"zipmap": False}})
    content: bytes = converted.SerializeToString()
    return content


TREES = "trees" if is_built() else "onnx"

FORMS: list[tuple[Callable[[], Any], Callable[[Any], bytes], str]] = [
    (forest, skops.io.dumps, "onnx"),
    (linear, skops.io.dumps, "onnx"),
    (of_xgboost, skops.io.dumps, "onnx"),
    (of_lightgbm, skops.io.dumps, TREES),
    (custom, skops.io.dumps, "scikit-learn"),
    (linear, as_onnx, "onnx"),
]


@pytest.mark.parametrize(("make", "write", "engine"), FORMS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_pushed_model_serves_and_answers_as_where_it_was_fitted(
    server: Server, make: Callable[[], Any], write: Callable[[Any], bytes], engine: str
) -> None:
    pipeline = make()
    asked, _ = features(200, seed=7)
    asked = asked.dropna()

    with server.client() as client:
        run = client.wait(client.push(write(pipeline), "pushed", "2026-01-01"), timeout_s=600)
        assert run["outcome"] == "promoted", run["record"]
        status = wait_until("the version in service", lambda: serving(client.status(), run["version"]))
        version = next(one for one in client.models()["models"] if one["version"] == run["version"])
        flags = [name for name in NUMBERS if sample.training_frame(5, seed=0)[name].dtype == bool]
        records = asked.astype(dict.fromkeys(flags, bool)).to_dict("records")
        answer = httpx.post(f"{server.url}/predict", json={"records": records}, timeout=60).json()
        client.wait(client.rollback("the next form"), timeout_s=600)

    assert status["champion"] == answer["version"] == run["version"]
    assert version["engine"] == engine
    np.testing.assert_allclose(np.array(answer["probabilities"]), pipeline.predict_proba(asked), atol=1e-5)
    assert answer["predictions"] == pipeline.predict(asked).tolist()


def serving(status: dict[str, Any], version: int) -> Any:
    return status if {worker["serving"] for worker in status["workers"]} == {version} else None
