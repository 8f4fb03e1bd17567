"""Records in JSON straight into the matrix: to the last bit what the strict decoder makes of them, or not at all."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks import fuzz_records, sanitized
from monitoring.decode import RequestDecoder
from monitoring.feature import Feature
from monitoring.schema import FeatureSchema
from tests.artefacts import make_artefact, sample_schema
from training import convert
from training.artefact import verify
from training.manifest import Plan
from training.records import RecordReader
from training.trees import is_built
from training.twin import Twin

pytestmark = pytest.mark.skipif(not is_built(), reason="nothing is built here: there was no compiler")

MOST: Any = {"max_rows": 1_000, "piece_bytes": 1 << 20}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Twin, FeatureSchema]:
    there = tmp_path_factory.mktemp("artefact") / "1"
    make_artefact(there)
    return Twin(there, verify(there)), sample_schema()[0]


def random_records(schema: FeatureSchema, count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def value(feature: Feature) -> Any:
        if rng.random() < 0.1:
            return None
        if feature.kind == "numeric":
            return rng.choice((rng.gauss(0, 1) * 10.0 ** rng.randint(-8, 12), rng.randint(-(10**9), 10**9)))
        return rng.choice((True, False) if feature.kind == "boolean" else (*feature.categories, "never seen", "Straße"))

    return [{feature.name: value(feature) for feature in schema.features} for _ in range(count)]


@pytest.mark.parametrize(("indent", "ascii_only"), [(None, False), (1, False)])
def test_what_is_read_is_what_the_strict_decoder_and_the_twin_make_of_it(
    twin: tuple[Twin, FeatureSchema], indent: int | None, ascii_only: bool
) -> None:
    model, schema = twin
    records = random_records(schema, 900, 1)
    body = json.dumps({"records": records}, indent=indent, ensure_ascii=ascii_only).encode()
    reader, decoder = model.reader(schema, 50), RequestDecoder(schema, 1_000, max_chars=50)
    assert reader is not None

    found = reader.read(body, **MOST)

    assert found is not None and len(found.matrix) == 900
    expected, matrix = model.predict_with_matrix(decoder.decode(body))
    np.testing.assert_array_equal(found.matrix, matrix)
    assert model.predict_matrix(found.matrix).tobytes() == expected.tobytes()
    assert body[found.end - 1 :].split() == [b"]", b"}"] or body[found.end - 1 :] == b"]}"


def test_pieces_are_whole_records_in_their_order(twin: tuple[Twin, FeatureSchema]) -> None:
    model, schema = twin
    records = random_records(schema, 100, 2)
    body = json.dumps({"records": records, "ids": list(map(str, range(100)))}, ensure_ascii=False).encode()
    reader = model.reader(schema, 50)
    assert reader is not None

    found = reader.read(body, 100, 2_000)

    assert found is not None and len(found.pieces) > 5
    assert all(end - start >= 2_000 for start, end, _ in found.pieces[:-1])
    apart = [json.loads(b"[" + body[start:end] + b"]") for start, end, _ in found.pieces]
    assert [len(one) for one in apart] == [rows for *_, rows in found.pieces]
    assert [record for one in apart for record in one] == records


def test_what_is_not_in_the_usual_form_is_left_to_the_decoder(twin: tuple[Twin, FeatureSchema]) -> None:
    model, schema = twin
    good = {feature.name: None for feature in schema.features}
    name = next(feature.name for feature in schema.features if feature.kind == "categorical")
    number = next(feature.name for feature in schema.features if feature.kind == "numeric")
    bodies = {
        "ids first": {"ids": ["a"], "records": [good]},
        "no record": {"records": []},
        "too many": {"records": [good] * 1_001},
        "a column that nobody knows": {"records": [{**good, "x": 1}]},
        "a column is missing": {"records": [dict(list(good.items())[1:])]},
        "an escape": {"records": [{**good, name: 'a"b'}]},
        "a long text": {"records": [{**good, name: "é" * 51}]},
        "a text for a number": {"records": [{**good, number: "1"}]},
        "a list": {"records": [{**good, number: [1]}]},
        "true for a number": {"records": [{**good, number: True}]},
        "an enormous number": {"records": [{**good, number: 1e39}]},
    }
    reader = model.reader(schema, 50)
    assert reader is not None

    read = {what: reader.read(json.dumps(body, ensure_ascii=False).encode(), **MOST) for what, body in bodies.items()}

    assert read == dict.fromkeys(bodies)
    assert reader.read(json.dumps({"records": [{**good, name: "é" * 50}]}, ensure_ascii=False).encode(), **MOST)


@pytest.mark.parametrize(
    ("places", "names", "why"),
    [
        ([0, 0], ["a", "b"], "two columns"),
        ([0], ["when", "b"], "datetime"),
    ],
)
def test_features_that_it_does_not_know_how_to_read_are_named(places: list[int], names: list[str], why: str) -> None:
    features = tuple(Feature(name, "datetime" if name == "when" else "numeric") for name in names)
    schema = FeatureSchema(features, "y", "regression")

    with pytest.raises(ValueError, match=why):
        RecordReader(schema, places, [None] * len(places), 50)


@pytest.mark.parametrize("engine", ["trees", "onnx"])
def test_only_compiled_trees_have_a_reader(twin: tuple[Twin, FeatureSchema], tmp_path: Path, engine: Any) -> None:
    make_artefact(tmp_path / "1")

    one = Twin(tmp_path / "1", verify(tmp_path / "1"), "onnx" if engine == "onnx" else "auto")

    assert (one.engine, one.reader(twin[1], 50) is None) == (engine, engine == "onnx")


def test_columns_that_are_no_matrix_have_no_reader() -> None:
    schema, features, labels = sample_schema()
    coder = ColumnTransformer(
        [("numbers", make_pipeline(SimpleImputer(), StandardScaler()), list(schema.numeric_names)),
         ("texts", OneHotEncoder(handle_unknown="ignore"), list(schema.categorical_names))]
    )  # fmt: skip
    pipeline = make_pipeline(coder, LogisticRegression(max_iter=1000)).fit(features, labels)
    model, plan = convert._columns(pipeline, schema)

    assert Twin.of(model, msgspec.convert(plan, Plan), schema).reader(schema, 50) is None


def test_no_hostile_body_ends_the_process_under_address_sanitizer() -> None:
    if reason := sanitized.why_not():
        pytest.skip(reason)
    said: list[str] = []

    problem = fuzz_records.run(8_000, 3, said.append)

    assert problem == ""
    assert "bodies under AddressSanitizer" in said[0] and ": 0 read" not in said[0]
