"""A replay end to end: a stream of 1,500 rows whose rule turns round."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from service.command import replay as command
from service.command.cli import app
from service.configuration import load
from service.replay.page import page
from service.replay.scores import over_time, score
from service.replay.stream import FIRST_AT, ROW_S, ReplayError, open_stream
from service.replay.study import Study
from tests.world import START, raw

ROWS, TURN = 1500, 650
POLICY = """
[retrain]
every_s = 60.0
cooldown_s = 0
min_labelled_rows = 100
min_new_labelled_rows = 100
[gates]
min_holdout_rows = 50
"""


def turning(rows: int = ROWS, task: Any = "binary") -> pd.DataFrame:
    """Rows of one world, then of another."""
    return pd.concat(
        [raw(TURN, 1, task=task), raw(rows - TURN, 2, task=task, turned=True, start=START + 60.0 * TURN)],
        ignore_index=True,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The stream's file and the policy's."""
    folder = tmp_path_factory.mktemp("replay")
    turning().to_parquet(folder / "turning.parquet")
    (folder / "quick.toml").write_text(POLICY)
    return folder / "turning.parquet", folder / "quick.toml"


def study_of(files: tuple[Path, Path], **asked: Any) -> Study:
    data, policy = files
    given = {"target": "y", "time": "when", "label_delay": "50", "every": 350, "start": 0.3, **asked}
    return command.run(command.Asked(data=str(data), **given), load(environ={}), [policy], quiet=True)


@pytest.fixture(scope="module")
def study(files: tuple[Path, Path]) -> Study:
    return study_of(files)


def without_times(found: Study) -> dict[str, Any]:
    built: dict[str, Any] = json.loads(
        msgspec.json.encode(found), object_hook=lambda each: {k: v for k, v in each.items() if k not in TIMED}
    )
    return built


TIMED = ("seconds", "training_s", "rows_a_minute")


def test_the_loop_recovers_from_a_turned_rule_and_stands_beside_its_schedules(study: Study) -> None:
    (loop,) = study.policies
    never = study.schedule(0)

    assert (study.start_rows, study.rows, study.metric, study.loss) == (450, 1050, "auc", "log loss")
    assert loop.name == "quick" and loop.trainings >= 1 and loop.promoted >= 1
    assert loop.trainings == loop.promoted + loop.refused + loop.failed
    assert sum(loop.checks.values()) == len(loop.turns) == 3
    recovered, left = loop.served_over_time[-1].value, never.over_time[-1].value
    assert recovered is not None and left is not None and recovered > left + 0.15
    assert [(s.trainings, s.window) for s in study.schedules] == [
        (0, False),
        (loop.trainings, False),
        (loop.trainings, True),
        (4 * loop.trainings, False),
    ]
    assert [turn.row for turn in loop.turns] == [350, 700, 1050]
    assert all(turn.why for turn in loop.turns)
    for stretches in (loop.served_over_time, never.over_time):
        assert stretches[0].start == 0 and stretches[-1].stop == 1050
        assert all(s.low is None or s.low <= s.value <= s.high for s in stretches)  # type: ignore[operator]


def test_the_command_writes_what_it_found_and_the_same_seed_finds_it_again(
    files: tuple[Path, Path],
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
    data, policy = files
    options = "--target y --time when --label-delay 50 --every 350 --start 0.3 --json found.json --html found.html"

    code = app(["replay", str(data), "--policy", str(policy), *options.split()], standalone_mode=False)

    shown = capsys.readouterr().out
    assert not code
    assert "quick, served" in shown and "never trained again" in shown and "rows a minute" in shown
    found = msgspec.json.decode((tmp_path / "found.json").read_bytes(), type=Study)
    assert found.policies[0].name == "quick" and found.every == 350
    assert without_times(found) == without_times(study)
    assert (tmp_path / "found.html").read_text().startswith("<!doctype html>")


class Seen(HTMLParser):
    """The tags of a page that are open, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_asks_no_network(study: Study) -> None:
    (loop,) = study.policies
    turns = [
        msgspec.structs.replace(turn, adaptation=1, weights={"identity": 0.4, "residual-1000": 0.6})
        for turn in loop.turns
    ]
    adapted = msgspec.structs.replace(loop, name="<adapted> & more", turns=turns)
    seen = Seen()

    written = page(msgspec.structs.replace(study, policies=[loop, adapted]))
    seen.feed(written)

    assert seen.open == []
    assert not [tag for tag, _, _ in seen.attributes if tag in ("script", "link", "img", "iframe", "object")]
    assert not [name for _, name, _ in seen.attributes if name in ("src", "href", "style") or name.startswith("on")]
    assert "//" not in written and "@import" not in written and "url(#plot)" in written
    assert written.count("url(") == written.count("url(#plot)")
    assert "<adapted> & more" in seen.texts and "<adapted>" not in written
    for word in ("Quality over time", "Who gives the answer", "residual-1000", "never trained again"):
        assert word in written
    assert written.count('class="promoted"') == 2 * loop.promoted
    assert written.count('class="refused"') == 2 * loop.refused


def test_a_regression_has_r2_and_squared_error(tmp_path: Path) -> None:
    frame = turning(900, "regression")
    stream = open_stream(frame, target="y", time="when", start=0.3, delay_rows=10)

    assert stream.schema.task == "regression"
    found = score(np.full(len(stream), stream.truth.mean()), stream.truth, "regression")
    assert found.metric == pytest.approx(0.0) and found.loss == pytest.approx(stream.truth.var())
    assert found.calibration is None


def test_a_perfectly_calibrated_output_has_no_calibration_error() -> None:
    chance = np.repeat([0.2, 0.8], 750)
    truth = np.concatenate([np.arange(750) % 5 == 0, np.arange(750) % 5 != 0]).astype(int)

    found = score(np.column_stack([1 - chance, chance]), truth, "binary")

    assert found.calibration == pytest.approx(0.0, abs=1e-9)
    assert found.metric == pytest.approx(0.8)
    assert found.loss == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))


def test_stretches_without_both_classes_have_no_value() -> None:
    chance = np.linspace(0, 1, 400)
    truth = np.concatenate([np.zeros(200, int), np.arange(200) % 2])

    first, second = over_time(np.column_stack([1 - chance, chance]), truth, "binary", 200)

    assert first.value is None and second.value is not None


def test_rows_of_one_moment_are_spread_and_labels_come_when_the_file_says() -> None:
    frame = raw(400)
    frame["when"] = frame["when"].dt.floor("10min")
    frame["known"] = frame["when"] + pd.Timedelta(hours=1)

    stream = open_stream(frame, target="y", time="when", label_time="known", start=0.5)

    assert stream.dated and (np.diff(stream.at) > 0).all()
    assert "known" not in stream.schema.names and "when" not in stream.schema.names
    assert (stream.due - stream.at).max() == 3600.0
    assert len(stream.known(0)) == 0 and 100 < len(stream.known(190)) < 150


def test_rows_without_dates_come_one_a_minute_and_labels_so_many_rows_later() -> None:
    frame = raw(300).drop(columns="when").assign(order=np.arange(300)[::-1])

    stream = open_stream(frame, target="y", time="order", start=0.5, delay_rows=20)

    assert not stream.dated and stream.at[0] == FIRST_AT + 150 * ROW_S
    assert stream.frame["a"].iloc[-1] == frame["a"].iloc[0] or np.isnan(frame["a"].iloc[0])
    assert len(stream.known(100)) == 80 and len(stream.known(20)) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "z"}, r"no column 'z'; it has when, a, b"),
        ({"target": ""}, "which column of .* is to be predicted\\? Name it with --target"),
        ({"label_delay": "soon"}, "--label-delay is a number of rows, or auto; got 'soon'"),
        ({"label_delay": "5", "label_time": "joined"}, "give one of the two"),
        ({"time": "city"}, "time column 'city' holds neither numbers nor ISO-8601 dates"),
        ({"start": 1.5}, "--start is a share between 0 and 1, got 1.5"),
        ({"start": 0.01}, "1,500 labelled rows, of which --start 0.01 takes 15: a first version needs at least 50"),
        ({"scenario": "abrupt"}, "only the sample has scenarios"),
        ({"data": "/nowhere.csv"}, "data source /nowhere.csv does not exist"),
    ],
)
def test_what_cannot_be_replayed_is_said(files: tuple[Path, Path], asked: dict[str, Any], said: str) -> None:
    from monitoring.errors import EvergreenError

    given: dict[str, Any] = {"data": str(files[0]), "target": "y", "time": "when", **asked}
    with pytest.raises(EvergreenError, match=said):
        command.run(command.Asked(**given), load(environ={}), quiet=True)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.ones(300), "all rows have 'y' = .*1.*: there is nothing to learn; name another --target"),
        (np.repeat([0, 1], 150), "the first 60 rows have 'y' = .*0.*raise --start until both classes are among them"),
    ],
)
def test_one_class_only_is_said(labels: Any, said: str) -> None:
    with pytest.raises(ReplayError, match=said):
        open_stream(raw(300).assign(y=labels), target="y", time="when", start=0.2)
