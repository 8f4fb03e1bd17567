"""A fitted pipeline -> an artefact folder: the skops file, its ONNX twin and the proof that they agree; and back.

Tolerance of the proof (`TOLERANCE`): 1e-5 on every probability, and the same label on every row whose two best
probabilities do not tie within that tolerance; for regression 1e-5 of the distance from the median prediction, or of
the predictions' standard deviation where that is larger. The rows of the proof are the check frame plus rows with each
value missing, unseen categories and numbers up to 1e30 in size.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import logging
import platform
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from training.artefact import (
    PIPELINE,
    REFERENCE,
    SCHEMA,
    TWIN,
    ArtefactError,
    read_manifest,
    verify,
    write_atomically,
    write_manifest,
)
from training.twin import Twin

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema

__all__ = [
    "DEFAULT_TRUSTED",
    "ArtefactError",
    "Parity",
    "UntrustedModel",
    "check_rows",
    "convert",
    "export",
    "load_pipeline",
    "load_skops",
    "predict",
    "read_manifest",
    "verify",
]

TOLERANCE: Final = 1e-5
CHECK_ROWS: Final = 2000
"""Rows of the check frame that are compared, evenly spaced; the made-up rows come on top."""

MAX_MODEL_BYTES: Final = 2 << 30
MAX_MODEL_RATIO: Final = 200
"""A skops file may unpack to this many bytes, and to this many times its own size: more is a zip bomb."""

_TREE_PREDICTOR: Final = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
DEFAULT_TRUSTED: Final = (_TREE_PREDICTOR, "numpy.dtype")
"""What skops does not trust by itself, and our own pipelines or a SimpleImputer (a dtype: plain data) need. Its reason
for the trees is that node indices are not checked before use: `load_skops` checks them, also those of
`sklearn.tree._tree.Tree` when that is put on the list."""

MAX_TREE_NODES: Final = 200_000
"""Larger forests get no twin: skl2onnx handles some 10,000 nodes a second, in Python."""

_ROW_BY_ROW: Final = frozenset(
    {"Add", "ArrayFeatureExtractor", "Cast", "Concat", "Identity", "LabelEncoder", "OneHotEncoder", "Reshape", "ZipMap"}
    | {"TreeEnsembleClassifier", "TreeEnsembleRegressor"}
)
"""ONNX operators that look at each row by itself, in one order."""

UNSEEN: Final = "\x00 a category nobody has seen"

EXTREME: Final = 1e30
"""Largest number that parity is proven for: a scaler overflows float32 beyond it."""


class UntrustedModel(ArtefactError):
    """Raised when a model file holds types that are not on the trust list; `types` names them."""

    def __init__(self, what: str, types: Sequence[str]) -> None:
        self.types = tuple(types)
        super().__init__(
            f"{what} holds types that are not trusted: {', '.join(types)}: when you trust the code behind them and "
            "the file's author, add them to the setting `trusted_types`"
        )


class Parity(msgspec.Struct, frozen=True):
    """How a pipeline and its twin compare; `agrees` False means that there is no twin, and `reason` says why."""

    rows: int
    max_abs_difference: float | None
    agrees: bool
    reason: str


def export(
    pipeline: Any,
    schema: FeatureSchema,
    folder: Path,
    *,
    check_frame: pd.DataFrame,
    reference: pd.DataFrame | None = None,
    manifest: Mapping[str, Any],
    twin: bool = True,
) -> dict[str, Any]:
    """Write the artefact `folder` (made when absent) and return its manifest.

    `check_frame` holds canonical features, `reference` the drift reference (canonical features, `_label`,
    `_prediction`, `_score`), `manifest` what the exporter does not find out itself: name, origin, data, ….
    The twin, its parity, `libraries`, `estimator` and the digests are added here.
    """
    import skops.io

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PIPELINE, skops.io.dumps(pipeline, compression=zipfile.ZIP_DEFLATED, compresslevel=1))
    write_atomically(folder / SCHEMA, schema.to_json())
    if reference is not None:
        reference.to_parquet(folder / REFERENCE, index=False)
    model, plan, parity = None, None, Parity(0, None, False, "no twin was asked for")
    if twin:
        model, plan, parity = convert(pipeline, schema, check_frame)
    if model is not None:
        write_atomically(folder / TWIN, model)
    else:
        (folder / TWIN).unlink(missing_ok=True)
    return write_manifest(
        folder,
        {
            **manifest,
            "task": schema.task,
            "estimator": type(_final(pipeline)).__name__,
            "libraries": libraries(),
            "twin": plan,
            "parity": msgspec.to_builtins(parity),
        },
    )


def libraries() -> dict[str, str]:
    """The versions that can change what a model computes."""
    names = ("scikit-learn", "numpy", "pandas", "skops", "onnx", "onnxruntime", "skl2onnx")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def predict(pipeline: Any, frame: pd.DataFrame, schema: FeatureSchema) -> npt.NDArray[Any]:
    """What the pipeline says of a canonical frame: probabilities, rows by classes; for regression float64 values.

    A pushed model may have been fitted to the columns in another order: it gets them in its own.
    """
    import numpy as np

    frame = frame[_names_of(pipeline, schema)]
    if schema.task == "regression":
        return np.asarray(pipeline.predict(frame), dtype=np.float64).reshape(-1)
    answer: npt.NDArray[Any] = np.asarray(pipeline.predict_proba(frame))
    return answer


# -- the twin -------------------------------------------------------------------------------------------------------


def convert(
    pipeline: Any, schema: FeatureSchema, check_frame: pd.DataFrame
) -> tuple[bytes | None, dict[str, Any] | None, Parity]:
    """The ONNX model, the manifest's `twin` entry and the parity; both None when no conversion agrees.

    Tried in this order: one float32 matrix (the fastest), one float64 matrix (linear models on large numbers), one
    input a column.
    """
    rows = check_rows(check_frame, schema)
    reasons: list[str] = []
    last = Parity(len(rows), None, False, "")
    try:
        expected = _expected(pipeline, rows, schema)
    except Exception as error:  # any pipeline of a user's own making
        return (
            None,
            None,
            Parity(
                len(rows),
                None,
                False,
                "the pipeline itself refuses rows with missing values, unseen categories or extreme numbers, which "
                f"its twin would answer: {_short(error)}; add an imputer, or handle_unknown to the encoder",
            ),
        )
    for layout in (_float32_matrix, _float64_matrix, _columns):
        try:
            with _quiet():
                model, plan = layout(pipeline, schema)
            twin = Twin.of(model, plan, schema)
            parity = _compare(expected, twin.predict_frame(rows), schema, min(len(check_frame), CHECK_ROWS))
        except _NoConversion as error:
            reasons.append(f"{layout.__name__[1:]}: {error}")
            continue
        except Exception as error:  # skl2onnx and onnxruntime raise anything
            reasons.append(f"{layout.__name__[1:]}: {_short(error)}")
            continue
        if parity.agrees:
            return model, plan, parity
        last = parity
        reasons.append(f"{layout.__name__[1:]}: {parity.reason}")
    return None, None, msgspec.structs.replace(last, reason="; ".join(reasons))


class _NoConversion(Exception):
    """Raised when a pipeline does not have the shape a layout needs."""


def check_rows(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """Rows of `frame` (at most `CHECK_ROWS`, evenly spaced), and rows with each value missing, unseen or extreme."""
    import numpy as np
    import pandas as pd

    frame = frame[list(schema.names)]
    if len(frame) > CHECK_ROWS:
        frame = frame.iloc[np.linspace(0, len(frame) - 1, CHECK_ROWS).astype(int)]
    seeds = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, 3).astype(int))]
    made = [frame]
    extremes = (0.0, 1.0, -1.0, 1e6, -1e6, EXTREME, -EXTREME)
    for name in schema.names:
        numeric = name in schema.numeric_names
        values: list[Any] = [np.nan, *(extremes if numeric else (UNSEEN, ""))]
        if numeric:
            low, high = float(frame[name].min()), float(frame[name].max())
            if np.isfinite(low) and np.isfinite(high):
                reach, most = high - low + 1, float(np.finfo(np.float32).max)
                values += [np.float32(max(low - reach, -most)), np.float32(min(high + reach, most))]
                values.append(np.float32((low + high) / 2))
        for value in values:
            changed = seeds.copy()
            changed[name] = pd.Series([value] * len(seeds), index=seeds.index).astype(frame[name].dtype)
            made.append(changed)
    nothing = seeds.iloc[:1].copy()
    for name in schema.names:
        nothing[name] = pd.Series([np.nan], index=nothing.index).astype(frame[name].dtype)
    return pd.concat([*made, nothing], ignore_index=True)


def _expected(pipeline: Any, rows: pd.DataFrame, schema: FeatureSchema) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    import numpy as np

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the made-up rows: overflow, unknown categories
        values = predict(pipeline, rows, schema)
        labels = (
            values if schema.task == "regression" else np.asarray(pipeline.predict(rows[_names_of(pipeline, schema)]))
        )
    return values, labels


def _compare(
    expected: tuple[npt.NDArray[Any], npt.NDArray[Any]], found: npt.NDArray[Any], schema: FeatureSchema, real: int
) -> Parity:
    """`real`: so many of the first rows are data; the largest difference is reported of them, all are judged."""
    import numpy as np

    values, labels = expected
    rows = len(values)
    if found.shape != values.shape:
        return Parity(rows, None, False, f"the twin answers shape {found.shape}, the pipeline {values.shape}")
    with np.errstate(all="ignore"):
        same = (found == values) | (np.isnan(found) & np.isnan(values))
        difference = np.where(same, 0.0, np.abs(found.astype(np.float64) - values))
        difference = np.where(np.isnan(difference), np.inf, difference)
        allowed: Any = TOLERANCE
        if schema.task == "regression":
            finite = values[np.isfinite(values)]
            middle, spread = (np.median(finite), np.std(_inner(finite))) if len(finite) else (0.0, 0.0)
            allowed = TOLERANCE * np.maximum(np.abs(values - middle), spread)
        worst = float(difference[:real].max(initial=0.0))
        beyond = int(np.count_nonzero((difference > allowed).reshape(rows, -1).any(axis=1)))
    if beyond:
        what = "of the distance from the median" if schema.task == "regression" else "in a probability"
        return Parity(rows, worst, False, f"{beyond} of {rows} rows differ by more than {TOLERANCE:g} {what}")
    if schema.task != "regression":
        classes = np.array(schema.classes, dtype=object)
        best = np.sort(values, axis=1)[:, -2:]
        # A forest's votes tie often, and float32 breaks a tie by rounding.
        decided = best[:, 1] - best[:, 0] > 2 * TOLERANCE
        flipped = int(np.count_nonzero((classes[found.argmax(axis=1)] != labels) & decided))
        if flipped:
            return Parity(rows, worst, False, f"{flipped} of {rows} rows get another label")
    return Parity(rows, worst, True, f"{rows} rows agree to {worst:.1e}")


def _inner(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the outermost percents, so that the made-up extremes do not widen the tolerance of the real rows."""
    import numpy as np

    low, high = np.quantile(values, [0.02, 0.98])
    inner: npt.NDArray[Any] = values[(values >= low) & (values <= high)]
    return inner


def _float32_matrix(pipeline: Any, schema: FeatureSchema) -> tuple[bytes, dict[str, Any]]:
    return _as_matrix(pipeline, schema, double=False)


def _float64_matrix(pipeline: Any, schema: FeatureSchema) -> tuple[bytes, dict[str, Any]]:
    return _as_matrix(pipeline, schema, double=True)


def _as_matrix(pipeline: Any, schema: FeatureSchema, *, double: bool) -> tuple[bytes, dict[str, Any]]:
    """Everything before the matrix is a table of codes for each categorical column; the rest is ONNX."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    numeric_pipeline, columns = _split(pipeline, schema)
    if double and _splits_on_missing(numeric_pipeline):
        raise _NoConversion("a tree splits on missing values, on which skl2onnx 1.20 never returns")
    kind = DoubleTensorType if double else FloatTensorType
    model = _to_onnx(numeric_pipeline, [("X", kind([None, len(columns)]))])
    plan: dict[str, Any] = {"layout": "matrix", "columns": columns, "input": "X", "output": _output(model, schema)}
    plan["row_by_row"] = _is_row_by_row(model)
    if double:
        plan["dtype"] = "float64"
    return model.SerializeToString(), plan


def _columns(pipeline: Any, schema: FeatureSchema) -> tuple[bytes, dict[str, Any]]:
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    inputs = [(n, FloatTensorType([None, 1]) if n in schema.numeric_names else StringTensorType([None, 1]))
              for n in _names_of(pipeline, schema)]  # fmt: skip
    model = _to_onnx(_prepared(pipeline), inputs)
    present = {i.name for i in model.graph.input}
    return model.SerializeToString(), {
        "layout": "columns",
        "inputs": [
            {"feature": n, "input": n, "type": "float" if n in schema.numeric_names else "string"}
            for n, _ in inputs
            if n in present
        ],
        "missing_category": "",
        "output": _output(model, schema),
        "row_by_row": _is_row_by_row(model),
    }


def _is_row_by_row(model: Any) -> bool:
    """Whether each row's answer is the same to the last bit whatever other rows are predicted with it.

    Trees compare and add up row by row; a product of matrices may add in another order when it has more rows.
    """
    return {node.op_type for node in model.graph.node} <= _ROW_BY_ROW


def _to_onnx(model: Any, inputs: list[tuple[str, Any]]) -> Any:
    from skl2onnx import convert_sklearn

    nodes = _tree_nodes(model)
    if nodes > MAX_TREE_NODES:
        raise _NoConversion(f"its trees have {nodes} nodes, more than {MAX_TREE_NODES} are not converted")
    final = _final(model)
    options = {id(final): {"zipmap": False}} if hasattr(final, "predict_proba") else None
    converted = convert_sklearn(model, initial_types=inputs, options=options)
    offset = getattr(final, "evergreen_offset", None)
    return converted if offset is None else _add_offset(converted, offset)


def _tree_nodes(model: Any) -> int:
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree._tree import Tree

    trees = _walk(model, (TreePredictor, Tree))
    return sum(len(tree.nodes) if isinstance(tree, TreePredictor) else int(tree.node_count) for _, tree in trees)


def _splits_on_missing(model: Any) -> bool:
    """A split of "missing" against "present" has an infinite threshold: `find_switch_point` loops on it for ever."""
    import numpy as np
    from sklearn.tree._tree import Tree

    return any(not np.isfinite(tree.threshold).all() for _, tree in _walk(model, (Tree,)))


def _output(model: Any, schema: FeatureSchema) -> str:
    names = [output.name for output in model.graph.output]
    if schema.task == "regression":
        return str(names[0])
    found = [name for name in names if "probab" in name]
    if not found:
        raise _NoConversion(f"the converted model answers {names}, no probabilities")
    return str(found[0])


def _final(pipeline: Any) -> Any:
    return pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline


def _names_of(pipeline: Any, schema: FeatureSchema) -> list[str]:
    names = getattr(pipeline, "feature_names_in_", None)
    return list(schema.names) if names is None else [str(name) for name in names]


def _split(pipeline: Any, schema: FeatureSchema) -> tuple[Any, list[dict[str, Any]]]:
    """A pipeline that reads one matrix of numbers, and what stands in each column of that matrix."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    names = _names_of(pipeline, schema)
    steps = list(pipeline.steps) if hasattr(pipeline, "steps") else []
    first = steps[0][1] if len(steps) > 1 else None
    if not isinstance(first, ColumnTransformer):
        if schema.categorical_names:
            raise _NoConversion("categorical features without a ColumnTransformer as the first step")
        return _prepared(pipeline), [{"feature": name} for name in names]

    columns: list[dict[str, Any]] = []
    surrogates: list[tuple[str, Any, list[int]]] = []
    for step, transformer, selected in first.transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        chosen = _selected(selected, names)
        if not chosen:
            continue
        tables, surrogate = _tables(transformer, chosen, schema)
        surrogates.append((step, surrogate, list(range(len(columns), len(columns) + len(chosen)))))
        columns += [
            {"feature": name} if table is None else {"feature": name, **table}
            for name, table in zip(chosen, tables, strict=True)
        ]
    rest = _prepared(Pipeline(steps[1:]) if len(steps) > 2 else steps[-1][1])
    if all(surrogate == "passthrough" for _, surrogate, _ in surrogates):
        return rest, columns  # nothing is left of the ColumnTransformer: its output is the matrix itself

    import numpy as np

    reads_matrix = ColumnTransformer([(n, "passthrough", c) for n, _, c in surrogates], sparse_threshold=0.0)
    reads_matrix.fit(np.zeros((2, len(columns)), dtype=np.float32))
    reads_matrix.transformers_ = surrogates
    inner = rest.steps if hasattr(rest, "steps") else [("model", rest)]
    return Pipeline([("columns", reads_matrix), *inner]), columns


def _selected(selected: Any, names: list[str]) -> list[str]:
    import numpy as np

    if isinstance(selected, str):
        return [selected]
    if isinstance(selected, slice):
        raise _NoConversion("a ColumnTransformer that selects by slice")
    values = np.asarray(selected)
    if values.dtype == bool:
        return [name for name, wanted in zip(names, values.tolist(), strict=True) if wanted]
    return [names[value] if isinstance(value, int) else str(value) for value in values.tolist()]


def _tables(transformer: Any, chosen: list[str], schema: FeatureSchema) -> tuple[list[dict[str, Any] | None], Any]:
    """The code table of each chosen column (None: a number as it is), and the transformer of those codes."""
    import numpy as np
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    categorical = [name in schema.categorical_names for name in chosen]
    if not any(categorical):
        return [None] * len(chosen), transformer if isinstance(transformer, str) else _nameless(transformer)
    if isinstance(transformer, str) or not all(categorical):
        raise _NoConversion(f"one transformer for numbers and categories together ({', '.join(chosen[:3])}…)")
    if isinstance(transformer, OrdinalEncoder):
        return [_ordinal(transformer, chosen, at) for at in range(len(chosen))], "passthrough"
    if isinstance(transformer, OneHotEncoder):
        if transformer.drop is not None or transformer.handle_unknown != "ignore" or transformer._infrequent_enabled:
            raise _NoConversion("a OneHotEncoder with drop, infrequent categories or handle_unknown other than ignore")
        tables: list[dict[str, Any] | None] = []
        for categories in transformer.categories_:
            known = {value: float(at) for at, value in enumerate(categories) if isinstance(value, str)}
            gaps = [float(at) for at, value in enumerate(categories) if not isinstance(value, str)]
            tables.append({"codes": known, "unknown": -1.0, "missing": gaps[0] if gaps else -1.0})
        codes = OneHotEncoder(
            categories=[np.arange(len(c), dtype=np.float32) for c in transformer.categories_],
            handle_unknown="ignore",
            sparse_output=False,
        )
        return tables, codes.fit(np.zeros((1, len(chosen)), dtype=np.float32))
    raise _NoConversion(f"{type(transformer).__name__} on categorical features")


def _ordinal(encoder: Any, chosen: list[str], at: int) -> dict[str, Any]:
    """The codes as the encoder itself gives them: asked, not deduced from its options."""
    import numpy as np
    import pandas as pd

    known = [value for value in encoder.categories_[at] if isinstance(value, str)]
    asked: list[Any] = [*known, np.nan, UNSEEN]
    filler = [next((v for v in c if isinstance(v, str)), np.nan) for c in encoder.categories_]
    frame = pd.DataFrame(
        {
            name: pd.Series(asked if other == at else [filler[other]] * len(asked), dtype=object)
            for other, name in enumerate(chosen)
        }
    )
    try:
        codes = np.asarray(encoder.transform(frame), dtype=np.float64)[:, at].tolist()
    except ValueError as error:
        raise _NoConversion(f"the encoder of {chosen[at]} refuses missing or unseen values: {_short(error)}") from None
    return {"codes": dict(zip(known, codes[:-2], strict=True)), "missing": codes[-2], "unknown": codes[-1]}


def _nameless(transformer: Any) -> Any:
    """A copy that has forgotten its column names, so that skl2onnx counts columns instead."""
    transformer = copy.deepcopy(transformer)
    for step in [transformer, *(step for _, step in getattr(transformer, "steps", []))]:
        if hasattr(step, "__dict__"):
            step.__dict__.pop("feature_names_in_", None)
    return transformer


def _prepared(model: Any) -> Any:
    """A copy of the model that converts to ONNX without loss.

    - The thresholds of histogram gradient boosting are float64 midpoints; skl2onnx rounds them to the nearest float32,
      which lies on the wrong side of a float32 value now and then. Rounded down, every float32 comparison is the same.
    - A regression's baseline is taken out and added again in float64: a sum of float32 loses the digits of a small
      variation on a large mean.
    """
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    model = _nameless(model)
    final = _final(model)
    if isinstance(final, (HistGradientBoostingClassifier, HistGradientBoostingRegressor)):
        if final.is_categorical_ is not None:
            raise _NoConversion("skl2onnx does not convert HistGradientBoosting with categorical_features")
        for stage in final._predictors:
            for tree in stage:
                nodes = tree.nodes.copy()
                with np.errstate(over="ignore"):
                    rounded = nodes["num_threshold"].astype(np.float32)
                above = rounded.astype(np.float64) > nodes["num_threshold"]
                rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
                nodes["num_threshold"] = rounded
                tree.nodes = nodes
    if isinstance(final, HistGradientBoostingRegressor) and final.loss in (
        "squared_error",
        "absolute_error",
        "quantile",
    ):
        final.evergreen_offset = float(np.asarray(final._baseline_prediction).reshape(-1)[0])
        final._baseline_prediction = np.zeros_like(final._baseline_prediction)
    if getattr(final, "classes_", None) is not None and np.asarray(final.classes_).dtype == bool:
        final.classes_ = final.classes_.astype(np.int64)  # only the probabilities are read
    return model


def _add_offset(model: Any, offset: float) -> Any:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    output = graph.output[0]
    graph.initializer.append(numpy_helper.from_array(np.array([offset], dtype=np.float64), "evergreen_offset"))
    graph.node.append(helper.make_node("Cast", [output.name], ["evergreen_wide"], to=TensorProto.DOUBLE))
    graph.node.append(helper.make_node("Add", ["evergreen_wide", "evergreen_offset"], ["evergreen_value"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("evergreen_value", TensorProto.DOUBLE, [None, 1]))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines skl2onnx emits for every conversion; its errors still come through."""
    logger = logging.getLogger("skl2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


# -- reading back ---------------------------------------------------------------------------------------------------


def load_pipeline(folder: Path, trusted: Iterable[str] = ()) -> Any:
    """The scikit-learn pipeline of an artefact folder (verify the folder first).

    `trusted` extends `DEFAULT_TRUSTED`. Raises as `load_skops` does.
    """
    return load_skops(folder / PIPELINE, trusted)


def load_skops(path: Path, trusted: Iterable[str] = ()) -> Any:
    """The object in a skops file, when it holds only types skops trusts, `DEFAULT_TRUSTED` and `trusted`.

    Never unpickles. Raises `UntrustedModel` naming the types, or `ArtefactError` for a file that is not skops, would
    unpack beyond `MAX_MODEL_BYTES`, or holds trees whose node indices lead outside of them.
    """
    import skops.io

    _check_zip(path)
    allowed = {*DEFAULT_TRUSTED, *trusted}
    try:
        found = skops.io.get_untrusted_types(file=path)
        if unknown := sorted(set(found) - allowed):
            raise UntrustedModel(str(path), unknown)
        model = skops.io.load(path, trusted=sorted(set(found) & allowed))
    except ArtefactError:
        raise
    except Exception as error:  # a crafted file can make skops fail anywhere
        raise ArtefactError(
            f"{path} cannot be loaded by skops {importlib.metadata.version('skops')}: "
            f"{type(error).__name__}: {_short(error)}: write it with skops.io.dump and scikit-learn "
            f"{importlib.metadata.version('scikit-learn')}"
        ) from error
    _check_trees(model, path)
    return model


def _check_zip(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist") from None
    remedy = "write it with skops.io.dump(model, path); pickle and joblib files are never loaded"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            schema = json.loads(archive.read("schema.json")) if _bounded(members, size, path) else {}
    except ArtefactError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, OSError, NotImplementedError, EOFError) as error:
        raise ArtefactError(f"{path} is not a skops file ({_short(error)}): {remedy}") from None
    if not isinstance(schema, dict) or "__loader__" not in schema:
        raise ArtefactError(f"{path} is not a skops file (its schema.json has no __loader__): {remedy}")


def _bounded(members: Sequence[zipfile.ZipInfo], size: int, path: Path) -> bool:
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_MODEL_BYTES or unpacked > MAX_MODEL_RATIO * max(size, 1 << 16):
        raise ArtefactError(
            f"{path} has {size} bytes and would unpack to {unpacked}: more than {MAX_MODEL_BYTES} bytes or "
            f"{MAX_MODEL_RATIO} times its size is taken for a zip bomb"
        )
    return True


def _check_trees(model: Any, path: Path) -> None:
    """scikit-learn follows node indices without checking them: a crafted tree would read foreign memory, or hang."""
    import numpy as np
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree._tree import Tree

    def refuse(why: str) -> None:
        raise ArtefactError(f"{path} holds a tree whose {why}: it was not written by scikit-learn; train it again")

    for owner, tree in _walk(model, (TreePredictor, Tree)):
        features = getattr(owner, "n_features_in_", getattr(owner, "_n_features", None))
        if isinstance(tree, TreePredictor):
            nodes = tree.nodes
            inner = np.flatnonzero(nodes["is_leaf"] == 0)
            left, right = nodes["left"][inner].astype(np.int64), nodes["right"][inner].astype(np.int64)
            feature = nodes["feature_idx"][inner].astype(np.int64)
            categorical = nodes["is_categorical"][inner] != 0
            bitsets = min(len(tree.binned_left_cat_bitsets), len(tree.raw_left_cat_bitsets))
            if categorical.any() and nodes["bitset_idx"][inner][categorical].max() >= bitsets:
                refuse("category sets are missing")
            count = len(nodes)
        else:
            inner = np.flatnonzero(tree.children_left != -1)
            left, right, feature = tree.children_left[inner], tree.children_right[inner], tree.feature[inner]
            count, features = tree.node_count, tree.n_features
        if not count:
            refuse("nodes are missing")
        # Both kinds store parents before their children; so an index that does not grow is a cycle.
        if len(inner) and (
            min((left - inner).min(), (right - inner).min()) <= 0 or max(left.max(), right.max()) >= count
        ):
            refuse("node indices lead outside of it")
        if len(inner) and (
            not isinstance(features, (int, np.integer)) or feature.min() < 0 or feature.max() >= features
        ):
            refuse("feature indices lead outside of the row")


def _walk(model: Any, wanted: tuple[type, ...]) -> Iterator[tuple[Any, Any]]:
    """(owner, object) for each object of the wanted types within `model`; the owner is the estimator around it."""
    import numpy as np
    from sklearn.base import BaseEstimator

    seen: set[int] = set()
    stack: list[tuple[Any, Any]] = [(None, model)]
    while stack:
        owner, value = stack.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, bool, type(None))):
            continue
        seen.add(id(value))
        if isinstance(value, wanted):
            yield owner, value
            continue
        if isinstance(value, BaseEstimator):
            owner = value
        if isinstance(value, Mapping):
            stack += [(owner, item) for item in value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)) or (
            isinstance(value, np.ndarray) and value.dtype == object
        ):
            stack += [(owner, item) for item in (value.ravel() if isinstance(value, np.ndarray) else value)]
        elif hasattr(value, "__dict__"):
            stack += [(owner, item) for item in vars(value).values()]
