"""The servers Evergreen is measured beside: what each needs, how it is asked, and what it answers.

Each `*.py` here runs in an environment of its own (`python FILE PORT MODEL`) and says in its docstring how it is
configured: one worker, and what its documentation recommends for speed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """One server.

    Args:
        name: short, for `--only`.
        title: as it stands in the table.
        file: of this folder; it runs it, or is what `command` runs.
        requirements: of its environment, beside those of the model.
        body: a request with these records.
        positive: the probabilities of the second class in an answer, one a record.
        command: arguments of its Python, from (port, model).
        serves: the pipeline (joblib), its bare estimator (joblib), or the champion's artefact folder.
    """

    name: str
    title: str
    file: str
    requirements: tuple[str, ...]
    body: Callable[[Sequence[Record]], bytes]
    positive: Callable[[Any], list[float]]
    path: str = "/predict"
    command: Callable[[int, str], list[str]] | None = None
    serves: str = "pipeline"

    @property
    def configuration(self) -> str:
        """The first paragraph of its file's docstring."""
        docstring = ast.get_docstring(ast.parse((FOLDER / self.file).read_text())) or ""
        return " ".join(docstring.split("\n\n")[0].split())

    def arguments(self, port: int, model: str) -> list[str]:
        return self.command(port, model) if self.command else [str(FOLDER / self.file), str(port), model]


def _same(*distributions: str) -> tuple[str, ...]:
    """The versions that Evergreen itself runs with."""
    return tuple(f"{name}=={version(name)}" for name in distributions)


MODEL: Final = _same("scikit-learn", "numpy", "pandas", "joblib", "threadpoolctl")
"""What a pickled pipeline needs to be the same pipeline."""


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def numbers(record: Record) -> dict[str, Any]:
    """A record with 0 and 1 for booleans: pandas would make a column of objects of a frame with both."""
    return {name: int(value) if isinstance(value, bool) else value for name, value in record.items()}


def records_body(records: Sequence[Record]) -> bytes:
    return _json({"records": [dict(record) for record in records]})


def _numbers_body(records: Sequence[Record]) -> bytes:
    return _json({"records": [numbers(record) for record in records]})


def _frame_body(records: Sequence[Record]) -> bytes:
    return _json({"frame": [numbers(record) for record in records]})


def _split_body(records: Sequence[Record]) -> bytes:
    rows = [numbers(record) for record in records]
    return _json({"dataframe_split": {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}})


def _v2_body(records: Sequence[Record]) -> bytes:
    inputs = []
    for name in records[0]:
        column = [numbers(record)[name] for record in records]
        text = isinstance(column[0], str)
        entry = {"name": name, "shape": [len(column), 1], "datatype": "BYTES" if text else "FP64", "data": column}
        inputs.append(entry | ({"parameters": {"content_type": "str"}} if text else {}))
    return _json({"parameters": {"content_type": "pd"}, "inputs": inputs, "outputs": [{"name": "predict_proba"}]})


def probabilities(answer: Any) -> list[float]:
    """Of `{"probabilities": [[p, q], …]}`."""
    return [float(row[1]) for row in answer["probabilities"]]


def _rows(answer: Any) -> list[float]:
    return [float(row[1]) for row in answer]


def _v2(answer: Any) -> list[float]:
    return [float(value) for value in answer["outputs"][0]["data"][1::2]]


def _mlflow(answer: Any) -> list[float]:
    return [float(row[1]) for row in answer["predictions"]]


def _bentoml(name: str) -> Callable[[int, str], list[str]]:
    def command(port: int, model: str) -> list[str]:
        where = ["--working-dir", str(FOLDER), "--host", "127.0.0.1", "--port", str(port)]
        return ["-m", "bentoml", "serve", f"{name}:Predictor", *where]

    return command


PEERS: Final = (
    Peer(
        "floor",
        "bare uvicorn + ONNX (the floor)",
        "floor.py",
        ("uvicorn", "uvloop", "httptools", *_same("onnxruntime", "numpy", "msgspec")),
        records_body,
        probabilities,
        serves="artefact",
    ),
    Peer(
        "fastapi",
        "FastAPI + scikit-learn",
        "fastapi_sklearn.py",
        ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", *MODEL),
        _numbers_body,
        probabilities,
    ),
    Peer(
        "bentoml",
        "BentoML, `pd.DataFrame` API",
        "bentoml_plain.py",
        (*_same("bentoml"), "uvloop", "httptools", *MODEL),
        _frame_body,
        _rows,
        command=_bentoml("bentoml_plain"),
    ),
    Peer(
        "bentoml-batch",
        "BentoML, `batchable=True`",
        "bentoml_batch.py",
        (*_same("bentoml"), "uvloop", "httptools", *MODEL),
        _numbers_body,
        _rows,
        command=_bentoml("bentoml_batch"),
    ),
    Peer(
        "mlserver",
        "MLServer, adaptive batching",
        "mlserver_runtime.py",
        ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop", "httptools", *MODEL),
        _v2_body,
        _v2,
        path="/v2/models/model/infer",
    ),
    Peer(
        "litserve",
        "LitServe, batching",
        "litserve_sklearn.py",
        ("litserve==0.2.19", "pyzmq", "uvloop", "httptools", *MODEL),
        _numbers_body,
        probabilities,
    ),
    Peer(
        "mlflow",
        "MLflow `models serve`",
        "mlflow_serve.py",
        ("mlflow==3.17.2", "uvloop", "httptools", *MODEL),
        _split_body,
        _mlflow,
        path="/invocations",
    ),
    Peer(
        "ray",
        "Ray Serve, batching",
        "ray_serve.py",
        ("ray[serve]==2.60.0", "uvloop", "httptools", *MODEL),
        _numbers_body,
        probabilities,
    ),
)
