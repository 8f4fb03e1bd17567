"""Evergreen from a notebook: a DataFrame becomes a folder to train and serve from, a fitted pipeline a push."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from evergreen_client import Refused

from monitoring.schema import FeatureSchema
from service import sample
from service.api import init, push, train
from service.command.first_version import TrainRefused
from service.command.init import InitError
from service.configuration import load
from tests.real_server import ROOT
from tests.stand_in import TOKEN, StandIn, serving
from training.pipeline import build


def test_a_frame_is_written_beside_its_settings_and_trains_the_first_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_TRAINING__NICE", "0")
    frame = sample.training_frame(700)
    folder = tmp_path / "loans"

    report = init(frame.set_index(sample.TIME), sample.TARGET, folder, time=sample.TIME, ignore=["region"])
    trained = train(folder)

    settings = load(folder / "evergreen.toml", {})
    assert (report.rows, report.path) == (700, folder / "evergreen.toml")
    assert settings.data.source == str(folder / "data.parquet")
    assert settings.data.ignore == ("region",)
    assert (trained.version, trained.promoted) == (1, True), trained.reasons
    with pytest.raises(InitError, match="exists already: force=True"):
        init(frame, sample.TARGET, folder)
    with pytest.raises(TrainRefused, match="version 1 is in service already"):
        train(folder)


def test_a_pipeline_is_pushed_to_the_service_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample.frame(300, start=4000)
    schema = FeatureSchema.infer(rows, sample.TARGET, ignore=(sample.TIME, sample.LABEL_DELAY))
    model = build(schema, {"max_iter": 5}).fit(schema.canonical(rows), schema.labels(rows[sample.TARGET]))
    init(sample.training_frame(300), sample.TARGET, tmp_path, time=sample.TIME)
    with serving(StandIn(schema)) as service:
        monkeypatch.setenv("EVERGREEN_SERVE__PORT", str(urlsplit(service.url).port))
        monkeypatch.setenv("EVERGREEN_SECURITY__TOKEN", TOKEN)
        run = push(model, tmp_path, why="from a notebook", trained_until="2026-01-31")
        with pytest.raises(Refused, match="not a skops file"):
            push(b"\x80\x04.", tmp_path)

    assert run == 1
    kind, why, content = service.queued[0]
    assert (kind, why) == ("push", "from a notebook")
    assert content.startswith(b"PK")


def test_the_api_is_imported_without_a_server_or_a_training_library(tmp_path: Path) -> None:
    program = (
        "import sys, service.api\n"
        "sys.exit(','.join({'bentoml', 'evidently', 'optuna', 'fastapi', 'skops'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "EVERGREEN_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
