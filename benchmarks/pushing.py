"""How soon is a pushed file answered? `python -m benchmarks.pushing [--repeats 3 --check]`.

Each form of file is given to the process that looks at pushed files, as `POST /manage/models` gives it: a table of
form, seconds, processor seconds of that process, and what is answered. `--check` fails when a file that must be refused
is not, or not within two seconds; the seconds of a busy machine (the first line shows its load) say little.
It does not show the upload itself, nor the run that judges what was not refused.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import skops.io
import xgboost
from sklearn.ensemble import RandomForestClassifier

from benchmarks.report import Spread, machine
from tests.artefacts import sample_schema
from tests.service.test_pushes import GOOD, bomb, crafted, graph, pipeline, without_libraries, words_for_flags
from training.admission import Pushed, problem_of

LIMIT_S = 2.0
TRUSTED = ("xgboost.*", "lightgbm.*")


class Form(NamedTuple):
    """A file, and whether it must be refused at once."""

    name: str
    content: bytes
    refused: bool


def forms() -> list[Form]:
    schema, features, truth = sample_schema()
    numbers = features[list(schema.numeric_names)]
    other_classes = pipeline(labels=lambda labels: np.where(labels == labels[0], "a", "b"))
    return [
        Form("a pickle", pickle.dumps({"model": 1}), True),
        Form("half of a file", GOOD[: len(GOOD) // 2], True),
        Form("a bomb of 10 GB", bomb(), True),
        Form(
            "a function of os",
            crafted({"__loader__": "FunctionNode", "__module__": "os", "__class__": "system"}),
            True,
        ),
        Form("XGBoost, not trusted", skops.io.dumps(xgboost.XGBClassifier(n_estimators=5).fit(numbers, truth)), True),
        Form("a column is missing", skops.io.dumps(pipeline(leave_out="income")), True),
        Form("other classes", skops.io.dumps(other_classes), True),
        Form("scikit-learn 1.2", without_libraries(GOOD, "1.2.0"), True),
        Form("half of an ONNX file", graph()[:-300], True),
        Form("ONNX, other names", graph({"income": "wage"}), True),
        Form("booleans as words", skops.io.dumps(words_for_flags()), False),  # refused, once it has been loaded
        Form("ONNX", graph(), False),
        Form("LogisticRegression, scaler, imputer", GOOD, False),
        Form("RandomForest, 100 trees", skops.io.dumps(pipeline(RandomForestClassifier(100, random_state=0))), False),
        Form("XGBoost, trusted", skops.io.dumps(pipeline(xgboost.XGBClassifier(n_estimators=100))), False),
        Form("LightGBM, trusted", skops.io.dumps(pipeline(lightgbm.LGBMClassifier(verbose=-1))), False),
    ]


def measured(form: Form, folder: Path, repeats: int) -> tuple[Spread, Spread, str]:
    """(seconds, processor seconds, the answer)."""
    path, schema = folder / "pushed", folder / "schema.json"
    path.write_bytes(form.content)
    schema.write_bytes(sample_schema()[0].to_json())
    trusted = TRUSTED if form.name.endswith(", trusted") else ()
    wall, processor, said = [], [], ""
    for _ in range(repeats):
        before, began = _children(), time.perf_counter()
        said = problem_of(Pushed(path=str(path), schema=str(schema), trusted=trusted, memory_mb=4096), longest_s=300)
        wall.append(time.perf_counter() - began)
        processor.append(_children() - before)
    return Spread.of(wall), Spread.of(processor), said


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """1 with --check when a file was not refused, or not in time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pushing", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    print(json.dumps(machine()))
    print(f"\n{given.repeats} times each: median (lowest to highest)\n")
    print("| file | s | processor s | answer |\n| --- | --- | --- | --- |")
    wrong: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="evergreen-pushing-") as folder:
        for form in forms():
            wall, processor, said = measured(form, Path(folder), given.repeats)
            print(f"| {form.name} | {wall.text()} | {processor.text()} | {said or 'to be judged'} |", flush=True)
            if form.refused and (not said or wall.median > LIMIT_S):
                wrong.append(form.name)
    print(f"\n{'not refused in time: ' + ', '.join(wrong) if wrong else f'each refusal within {LIMIT_S:g} s'}")
    return 1 if given.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
