"""The job that makes an adaptation, on rows of every bad kind: it makes one that serves, or says that it made none."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.semi_supervised import LabelSpreading

from monitoring.feature import ADAPTATION, AT, LABEL, Task
from monitoring.schema import FeatureSchema
from tests.world import history, raw
from training.adaptation import Adaptation, Adapter, decode, link
from training.artefact import UNSEEN, verify
from training.data import prepare, snapshot
from training.experts import AdaptPolicy
from training.job import run
from training.loaded import LoadedModel, load_model
from training.spec import START, Adapted, JobResult, JobSpec, read_result

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
SOURCE, ROWS = 600, 600


class Champion(NamedTuple):
    """A first version in a folder."""

    schema: FeatureSchema
    folder: Path

    @property
    def model(self) -> LoadedModel:
        return load_model(self.folder, verify(self.folder), self.schema)


@pytest.fixture(scope="module")
def champions(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Champion]:
    found = {}
    for task in TASKS:
        folder = tmp_path_factory.mktemp(task)
        schema, source = history(SOURCE, 0, task=task)
        spec = JobSpec(
            kind="train",
            out=str(folder / "v1"),
            snapshot=str(snapshot(source, folder).path),
            schema=msgspec.json.decode(schema.to_json()),
            parameters={"max_iter": 15},
            gates={"min_holdout_rows": 100},
            origin="bootstrap",
            nice=0,
        )
        assert run(spec).ok
        found[task] = Champion(schema, folder / "v1")
    return found


def matured(champion: Champion, task: Task, *, rows: int = ROWS) -> pd.DataFrame:
    """Rows that the champion answered and whose labels came, oldest first; the rule has turned."""
    later = raw(rows, 2, task=task, turned=True, start=1_800_000_000.0)
    frame = prepare(later, target="y", time="when", schema=champion.schema).frame.reset_index(drop=True)
    frame[ADAPTATION] = np.nan
    return frame[[*champion.schema.names, AT, LABEL, ADAPTATION]]


class Round(NamedTuple):
    """What came of one job, and what it left."""

    result: JobResult
    served: Adaptation | None
    whole: Path

    @property
    def adapted(self) -> Adapted:
        assert self.result.ok and self.result.adapted is not None, self.result.error
        return self.result.adapted


def spec_of(champion: Champion, frame: pd.DataFrame, folder: Path, **changes: Any) -> JobSpec:
    """A job over these rows; without `served`, the champion answered them as it is."""
    folder.mkdir()
    frame.to_parquet(folder / "rows.parquet", index=False)
    served = changes.pop("served", None)
    if served is None:
        served = champion.model.answer_with_matrix(champion.schema.canonical(frame))[0]
    np.save(folder / "served.npy", np.asarray(served, dtype=np.float64))
    return JobSpec(
        kind="adapt",
        out=str(folder / "result"),
        snapshot=str(folder / "rows.parquet"),
        served=str(folder / "served.npy"),
        schema=msgspec.json.decode(champion.schema.to_json()),
        champion=str(champion.folder),
        nice=0,
        **changes,
    )


def adapted(champion: Champion, frame: pd.DataFrame, folder: Path, **changes: Any) -> Round:
    spec = spec_of(champion, frame, folder, **changes)
    result = run(spec)
    left = folder / f"{START}.served"
    return Round(result, decode(left.read_bytes()) if left.exists() else None, folder / f"{START}.whole")


def twice(champion: Champion, frame: pd.DataFrame, folder: Path) -> tuple[Round, np.ndarray, np.ndarray]:
    """(the second of two jobs, raw output, what it serves): the first one's adaptation answered the second half."""
    half = len(frame) // 2
    folder.mkdir()
    first = adapted(champion, frame[:half], folder / "1")
    assert first.served is not None
    frame = frame.copy()
    frame.loc[half:, ADAPTATION] = 1.0
    output, x = champion.model.answer_with_matrix(champion.schema.canonical(frame))
    served = output.astype(np.float64)
    served[half:] = Adapter(first.served).apply(output, x)[half:]
    second = adapted(champion, frame, folder / "2", served=served, answered_by={1: str(first.whole)})
    if second.served is None:
        return second, output, output
    return second, output, Adapter(second.served).apply(output, x)


def sane(champion: Champion, frame: pd.DataFrame, folder: Path, most: float = 1e4) -> Round:
    """Two jobs over these rows; what is served is a number in its range, and every figure that is told is finite."""
    second, _, said = twice(champion, frame, folder)
    assert np.isfinite(said).all()
    if champion.schema.task == "regression":
        assert np.abs(said).max() < most
    else:
        assert said.min() >= 0 and said.sum(axis=1) == pytest.approx(1, abs=1e-5)
    found = second.adapted
    assert np.isfinite([*found.standing.values(), *found.weights.values(), found.slope, found.moved]).all()
    assert found.raw_loss is not None and np.isfinite([found.raw_loss, found.served_loss]).all()
    return second


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_one_class_or_value_only(task: Task, champions: dict[Task, Champion], tmp_path: Path) -> None:
    frame = matured(champions[task], task)
    frame[LABEL] = frame[LABEL].iloc[0]
    assert sane(champions[task], frame, tmp_path / "jobs").adapted.made


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", ["the same", "missing"])
def test_columns_without_any_spread(task: Task, value: str, champions: dict[Task, Champion], tmp_path: Path) -> None:
    frame = matured(champions[task], task)
    for name in ("a", "city"):
        frame[name] = frame[name].dropna().iloc[0] if value == "the same" else None
    frame = frame.astype({"a": "float64", "city": "object"})
    assert sane(champions[task], frame, tmp_path / "jobs").adapted.made


@pytest.mark.parametrize("outliers", [1, 12])
def test_labels_of_a_trillion_do_not_take_the_others_answers_with_them(
    outliers: int, champions: dict[Task, Champion], tmp_path: Path
) -> None:
    """Labels lie at 1,000, give or take 50; one of 50 is wrong by 12 orders of magnitude."""
    frame = matured(champions["regression"], "regression")
    at = np.linspace(20, ROWS - 20, outliers).astype(int)
    frame.loc[at, LABEL] = 1e12
    second = sane(champions["regression"], frame, tmp_path / "jobs", most=1_500.0)
    assert second.served is not None and second.served.bound < 2_000
    clean = sane(champions["regression"], matured(champions["regression"], "regression"), tmp_path / "clean")
    assert clean.served is not None
    assert second.served.bound < 5 * clean.served.bound


def test_labels_of_a_trillion_among_the_rows_that_a_version_started_with_move_no_answer_either(
    champions: dict[Task, Champion], tmp_path: Path
) -> None:
    first = champions["regression"]
    champion = Champion(first.schema, tmp_path / "v1")
    shutil.copytree(first.folder, champion.folder)
    _, source = history(SOURCE, 0, task="regression")
    source.loc[[5, 100], LABEL] = 1e12
    held = snapshot(source, tmp_path)
    told = champion.model.answer_with_matrix(source[list(first.schema.names)])[0]
    np.savez(champion.folder / UNSEEN, snapshot=held.path.stem, rows=np.arange(SOURCE), said=told)
    frame = matured(champion, "regression", rows=200)
    found = adapted(champion, frame, tmp_path / "job", unseen=str(held.path), standing={"scale-1000": 1e3})
    output, x = champion.model.answer_with_matrix(first.schema.canonical(frame))
    assert found.served is not None
    assert found.served.experts[1].rows > 200, "the earlier rows were read, too"
    assert np.abs(Adapter(found.served).apply(output, x)).max() < 1_500


def test_a_class_that_no_matured_row_has_keeps_its_probability(champions: dict[Task, Champion], tmp_path: Path) -> None:
    frame = matured(champions["multiclass"], "multiclass")
    frame = frame[frame[LABEL] != "low"].reset_index(drop=True)
    assert sane(champions["multiclass"], frame, tmp_path / "jobs").adapted.made
    _, _, said = twice(champions["multiclass"], frame, tmp_path / "again")
    assert (said > 0).all()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_labels_of_unknown_classes_only_make_none_and_say_why(
    task: Task, champions: dict[Task, Champion], tmp_path: Path
) -> None:
    frame = matured(champions[task], task)
    frame[LABEL] = "elsewhere" if task == "multiclass" else 7
    found = adapted(champions[task], frame, tmp_path / "job")
    assert not found.adapted.made and found.adapted.rows == 0
    assert found.served is None


def test_no_row_at_all(champions: dict[Task, Champion], tmp_path: Path) -> None:
    for task in TASKS:
        found = adapted(champions[task], matured(champions[task], task)[:0], tmp_path / task, served=np.empty(0))
        assert not found.adapted.made and found.served is None


def test_a_model_without_a_twin_is_adapted_by_what_its_pipeline_answers(
    champions: dict[Task, Champion], tmp_path: Path
) -> None:
    schema, source = history(SOURCE, 200, task="binary")
    numbers = ["a", "b", "member", "joined"]
    pipeline = make_pipeline(
        ColumnTransformer([("numbers", SimpleImputer(), numbers)]),
        LabelSpreading(kernel="rbf", gamma=0.5, max_iter=500),
    )
    skops.io.dump(pipeline.fit(source[list(schema.names)], source[LABEL]), tmp_path / "pushed.skops")
    judged = run(
        JobSpec(
            kind="judge",
            out=str(tmp_path / "v2"),
            snapshot=str(snapshot(source, tmp_path).path),
            schema=msgspec.json.decode(schema.to_json()),
            champion=str(champions["binary"].folder),
            pushed=str(tmp_path / "pushed.skops"),
            gates={"min_holdout_rows": 100},
            nice=0,
        )
    )
    assert judged.ok, judged.error
    champion = Champion(schema, tmp_path / "v2")
    assert verify(champion.folder).twin is None
    second = sane(champion, matured(champion, "binary"), tmp_path / "jobs")
    assert second.adapted.made
    assert second.served is not None and second.served.columns == len(schema.numeric_names)


@pytest.mark.parametrize("task", TASKS)
def test_no_answer_is_moved_further_than_allowed(task: Task, champions: dict[Task, Champion], tmp_path: Path) -> None:
    frame = matured(champions[task], task)
    policy = AdaptPolicy(max_move=0.3, rate=1.0, identity_prior=0.01)
    _, output, _ = twice(champions[task], frame, tmp_path / "jobs")
    made = adapted(
        champions[task],
        frame,
        tmp_path / "bounded",
        adapt=policy.model_dump(mode="json"),
        standing={"scale-300": 1e3},
    ).served
    assert made is not None
    x = champions[task].model.answer_with_matrix(champions[task].schema.canonical(frame))[1]
    moved = link(Adapter(made).apply(output, x), task) - link(output, task)
    most = made.bound * 2 if task == "multiclass" else made.bound  # one class up, another down
    assert 0.2 * most < np.abs(moved).max() <= most * 1.01 + 1e-3
    assert task == "regression" or most == 0.3


def test_a_full_disk_is_a_result_with_its_reason_and_leaves_no_half_adaptation(
    champions: dict[Task, Champion], tmp_path: Path
) -> None:
    """Files of this process may grow to 4 KB: an adaptation is larger, the reason is not."""
    spec = spec_of(champions["binary"], matured(champions["binary"], "binary"), tmp_path / "job")
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))

    done = subprocess.run(
        [sys.executable, "-m", "training.job", str(tmp_path / "spec.json")],
        preexec_fn=few,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=600,
        check=False,
    )
    result = read_result(tmp_path / "job" / "result")
    assert done.returncode == 1
    assert result is not None and not result.ok and "File too large" in (result.error or "")
    assert not list((tmp_path / "job").glob(f"{START}.*"))
