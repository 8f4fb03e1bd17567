"""Insides of libraries that we rely on, a test each: after an upgrade the one that fails says what has moved.

The upper bounds in `pyproject.toml` stand for these tests: raise a bound when they pass with the new release.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# --- uvicorn: service/serving/connection.py and wire.py --------------------------------------------------------------


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """A connection of uvicorn's own protocol with one request under way."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState

    class Socket(asyncio.Transport):
        def write(self, data: Any) -> None:
            pass

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        pass

    loop = asyncio.new_event_loop()
    config = uvicorn.Config(answered, log_level="critical", log_config=None, lifespan="off", ws="none")
    config.load()
    made = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    made.connection_made(Socket())
    made.data_received(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{")
    yield made
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize(
    "name",
    [
        *("app", "client", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop", "parser"),
        *("pipeline", "server_state", "timeout_keep_alive", "timeout_keep_alive_task", "transport", "url"),
        *("cycle.disconnected", "cycle.keep_alive", "cycle.message_event", "cycle.response_complete"),
        *("cycle.response_started", "flow.read_paused", "flow.resume_reading", "flow.write_paused"),
        *("server_state.default_headers", "server_state.total_requests"),
    ],
)
def test_a_connection_of_uvicorn_has(connection: Any, name: str) -> None:
    owner, _, last = name.rpartition(".")
    assert hasattr(getattr(connection, owner) if owner else connection, last)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("connection_made", ["transport"]),
        ("connection_lost", ["exc"]),
        ("data_received", ["data"]),
        ("on_message_begin", []),
        ("on_headers_complete", []),
        ("on_body", ["body"]),
        ("on_message_complete", []),
        ("on_response_complete", []),
        ("shutdown", []),
        ("timeout_keep_alive_handler", []),
        ("_unset_keepalive_if_required", []),
    ],
)
def test_uvicorns_protocol_is_called_by(method: str, arguments: list[str]) -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    assert list(inspect.signature(getattr(HttpToolsProtocol, method)).parameters) == ["self", *arguments]


def test_uvicorn_keeps_a_request_as_the_wire_reads_it(connection: Any) -> None:
    assert connection.url == b"/predict"
    assert connection.headers == [(b"host", b"x"), (b"content-length", b"2")]
    assert connection.expect_100_continue is False and not connection.cycle.response_complete


def test_uvicorns_status_lines_are_bytes_by_number() -> None:
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE

    assert (STATUS_LINE[200], STATUS_LINE[413][:13]) == (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 413 ")


def test_uvicorn_looks_its_protocol_up_in_a_table_under_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn.config

    from service.serving import wire

    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")  # given back after the test
    wire.install()
    config = uvicorn.Config(lambda: None, log_config=None)
    config.load()
    assert config.http_protocol_class is wire.LaneProtocol


# --- prometheus_client: monitoring/metrics.py ------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A counter and a histogram in files of `tmp_path`."""
    from monitoring.metrics import Metrics

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = Metrics(tmp_path, "api-1")
    yield metrics
    metrics.close()


@pytest.mark.parametrize("name", ["_key", "_value", "_file", "_file._positions", "_file._m"])
def test_a_value_of_prometheus_client_has(series: Any, name: str) -> None:
    value = series.predictions.labels("1")._value
    owner, _, last = name.rpartition(".")
    assert hasattr(getattr(value, owner) if owner else value, last)


@pytest.mark.parametrize("name", ["_upper_bounds", "_buckets", "_sum"])
def test_a_histogram_of_prometheus_client_has(series: Any, name: str) -> None:
    assert hasattr(series.prediction_seconds, name)


def test_prometheus_client_lays_value_and_time_side_by_side_at_the_keys_position(series: Any) -> None:
    counter = series.predictions.labels("1")
    counter.inc(3)
    value = counter._value
    position = value._file._positions[value._key]
    assert struct.unpack("dd", value._file._m[position : position + 16]) == (3.0, 0.0)


def test_prometheus_client_counts_each_observation_in_one_bucket(series: Any) -> None:
    histogram = series.prediction_seconds
    histogram.observe(0.0007)
    assert histogram._upper_bounds[-1] == float("inf")
    assert [bucket.get() for bucket in histogram._buckets] == [0, 1] + [0] * (len(histogram._buckets) - 2)


def test_prometheus_client_names_and_begins_its_files_as_we_make_room_for_them(series: Any, tmp_path: Path) -> None:
    from prometheus_client import mmap_dict

    from monitoring.metrics import _FILE_BYTES, _FILE_KINDS

    series.predictions.labels("1").inc()
    series.scheduler_leader.set(1)
    assert {path.name for path in tmp_path.glob("*.db")} == {f"{kind}_api-1.db" for kind in _FILE_KINDS}
    assert mmap_dict._INITIAL_MMAP_SIZE == _FILE_BYTES


def test_prometheus_client_lets_a_caller_choose_its_value_class_and_close_the_files(series: Any) -> None:
    from prometheus_client import values

    assert list(inspect.signature(values.MultiProcessValue).parameters) == ["process_identifier"]
    assert values.ValueClass is series._values and callable(series._values.close_all_files)


# --- scikit-learn: training/export.py --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boosted() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    random = np.random.default_rng(0)
    features = random.normal(size=(200, 2))
    return HistGradientBoostingRegressor(max_iter=2).fit(features, features[:, 0])


@pytest.mark.parametrize("name", ["_predictors", "_baseline_prediction", "is_categorical_", "loss", "n_features_in_"])
def test_a_boosted_model_of_scikit_learn_has(boosted: Any, name: str) -> None:
    assert hasattr(boosted, name)


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("num_threshold", "f8"),
        ("is_leaf", "u1"),
        ("left", "u4"),
        ("right", "u4"),
        ("is_categorical", "u1"),
        ("bitset_idx", "u4"),
        ("feature_idx", None),
    ],
)
def test_a_boosted_trees_node_has(boosted: Any, field: str, kind: str | None) -> None:
    found = boosted._predictors[0][0].nodes.dtype[field]
    assert found.kind in "iu" if kind is None else found == np.dtype(kind)


@pytest.mark.parametrize("name", ["nodes", "binned_left_cat_bitsets", "raw_left_cat_bitsets"])
def test_a_boosted_tree_has(boosted: Any, name: str) -> None:
    assert hasattr(boosted._predictors[0][0], name)


def test_a_boosted_tree_is_where_the_trust_list_says(boosted: Any) -> None:
    from training.known_types import LOADERS

    kind = type(boosted._predictors[0][0])
    assert f"{kind.__module__}.{kind.__qualname__}" in LOADERS


def test_the_parts_of_estimators_that_are_trusted_are_where_scikit_learn_has_them() -> None:
    from training.known_types import PARTS

    for name in sorted(PARTS):
        module, _, attribute = name.rpartition(".")
        kind = getattr(importlib.import_module(module), attribute)
        assert f"{kind.__module__}.{kind.__qualname__}" == name


def test_gradient_boosting_says_where_it_starts() -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    features = np.arange(30.0).reshape(-1, 1)
    boosting = GradientBoostingClassifier(n_estimators=2).fit(features, np.arange(30) % 3)
    assert boosting._raw_predict_init(features).shape == (30, boosting.estimators_.shape[1])


def test_a_boosted_tree_keeps_parents_before_their_children(boosted: Any) -> None:
    nodes = boosted._predictors[0][0].nodes
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    assert len(inner) and (nodes["left"][inner] > inner).all() and (nodes["right"][inner] > inner).all()


@pytest.mark.parametrize(
    "name", ["threshold", "node_count", "children_left", "children_right", "feature", "n_features"]
)
def test_a_plain_tree_of_scikit_learn_has(name: str) -> None:
    from sklearn.tree import DecisionTreeRegressor
    from sklearn.tree._tree import Tree

    tree = DecisionTreeRegressor().fit([[0.0], [1.0]], [0.0, 1.0]).tree_
    assert isinstance(tree, Tree) and hasattr(tree, name)


def test_a_one_hot_encoder_says_how_many_columns_each_feature_becomes() -> None:
    from sklearn.preprocessing import OneHotEncoder

    words = np.array([["a", "x"], ["b", "y"], ["c", "y"]], dtype=object)
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=2).fit(words)
    assert list(encoder._n_features_outs) == [2, 2]


def test_extra_trees_answer_as_a_random_forest_of_the_same_trees_does() -> None:
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

    features = np.random.default_rng(0).normal(size=(60, 3))
    forest = ExtraTreesClassifier(5, random_state=0).fit(features, np.arange(60) % 3)
    expected = forest.predict_proba(features)
    forest.__class__ = RandomForestClassifier
    assert np.array_equal(forest.predict_proba(features), expected)


def test_the_leaves_of_a_forest_for_numbers_can_be_moved() -> None:
    from sklearn.ensemble import RandomForestRegressor

    features = np.random.default_rng(0).normal(size=(60, 3))
    forest = RandomForestRegressor(5, random_state=0).fit(features, 1000 + features[:, 0])
    expected = forest.predict(features)
    for tree in forest.estimators_:
        tree.tree_.value[:] -= 1000
    assert np.allclose(forest.predict(features), expected - 1000)


# --- BentoML and Evidently, of one version each ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_store_of_bentoml_takes_a_path_and_create_takes_a_store() -> None:
    from bentoml._internal.models import ModelStore
    from bentoml.models import create

    assert next(iter(inspect.signature(ModelStore).parameters)) == "base_path"
    assert "_model_store" in inspect.signature(create).parameters


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bentoml_names_the_worker_and_its_worker_program() -> None:
    import importlib.util

    import bentoml

    assert hasattr(bentoml.server_context, "worker_index")
    assert importlib.util.find_spec("_bentoml_impl.worker.service") is not None


def test_evidently_answers_a_distance_by_its_name() -> None:
    from monitoring.distance import distance_of

    assert distance_of("wasserstein", "num")(np.arange(50.0), np.arange(50.0)) == 0.0
