from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.schema import FeatureSchema
from service import sample
from service.command.init import USEFUL, InitError, init, suspicious_columns
from service.configuration import load
from service.settings import SECTIONS
from training.data import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "credit.parquet"
    path.parent.mkdir()
    sample.training_frame(600).to_parquet(path)
    return path


def warned(frame: pd.DataFrame, target: str = "y", time: str = "") -> list[str]:
    schema = FeatureSchema.infer(frame, target, ignore=[time] if time else [])
    return suspicious_columns(frame, target, time=time, features=schema.names, task=schema.task)


def honest(rows: int = 1000) -> pd.DataFrame:
    """Two features that tell something, but not everything, of `y`."""
    random = np.random.default_rng(0)
    x = random.normal(size=rows)
    y = (x + random.normal(size=rows) > 0).astype(int)
    return pd.DataFrame({"x": x, "colour": random.choice(["red", "blue"], rows), "y": y})


# The file


def test_the_written_file_loads_as_what_was_asked_for(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "evergreen.toml"

    report = init(data, sample.TARGET, time=sample.TIME, ignore=["region"], out=out)

    settings = load(out, {})
    assert settings.data.source == str(data)
    assert (settings.data.target, settings.data.time, settings.data.ignore) == (sample.TARGET, sample.TIME, ("region",))
    assert settings.serve == load(environ={}).serve
    assert (report.path, report.rows, report.task) == (out, 600, "binary")
    assert set(report.kinds) == set(sample.FEATURES) - {"region"}


def test_every_section_and_its_useful_keys_stand_there_with_their_reason(data: Path, tmp_path: Path) -> None:
    init(data, sample.TARGET, out=tmp_path / "evergreen.toml")

    text = (tmp_path / "evergreen.toml").read_text()
    assert list(USEFUL) == list(SECTIONS)
    for section, keys in USEFUL.items():
        assert f"\n[{section}]\n" in text
        for key in keys:
            assert key in SECTIONS[section].model_fields
            assert f"\n{key} = " in text or f"\n# {key} = " in text
    assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 120


def test_every_key_of_the_file_may_be_uncommented(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "evergreen.toml"
    init(data, sample.TARGET, time=sample.TIME, out=out)
    before = load(out, {})

    lines = out.read_text().splitlines()
    keys = {f"# {key} = " for names in USEFUL.values() for key in names}
    out.write_text("\n".join(line[2:] if any(line.startswith(key) for key in keys) else line for line in lines))

    assert load(out, {}) == before


def test_the_features_found_stand_there_as_comments(data: Path, tmp_path: Path) -> None:
    init(data, sample.TARGET, time=sample.TIME, out=tmp_path / "evergreen.toml")

    text = (tmp_path / "evergreen.toml").read_text()
    assert "# Found in 600 rows: binary: 0, 1." in text
    assert "#   boolean: owns_home, returning" in text
    assert "history_years?" in text


def test_a_relative_data_file_is_written_relative_to_the_settings(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init(Path("data/credit.parquet"), sample.TARGET, out=Path("project/evergreen.toml"))

    assert 'source = "../data/credit.parquet"' in Path("project/evergreen.toml").read_text()
    monkeypatch.chdir("/")
    assert load(tmp_path / "project/evergreen.toml", {}).data.source == str(data)


def test_awkward_names_survive_the_way_through_the_file(tmp_path: Path) -> None:
    frame = honest().rename(columns={"x": "größe / m²", "colour": "a\\b'c"})
    frame.to_csv(tmp_path / "it's.csv", index=False)

    init(tmp_path / "it's.csv", "y", ignore=["a\\b'c"], out=tmp_path / "evergreen.toml")

    data = load(tmp_path / "evergreen.toml", {}).data
    assert (data.source, data.ignore) == (str(tmp_path / "it's.csv"), ("a\\b'c",))


def test_an_existing_file_is_replaced_only_by_force(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "evergreen.toml"
    out.write_text("# mine\n")

    with pytest.raises(InitError, match="exists already: --force replaces it"):
        init(data, sample.TARGET, out=out)
    assert out.read_text() == "# mine\n"

    init(data, sample.TARGET, out=out, force=True)
    assert "[data]" in out.read_text()


@pytest.mark.parametrize(
    ("target", "time", "ignore", "said"),
    [
        ("defaulte", "", [], '--target "defaulte": .* no such column, did you mean "defaulted"'),
        ("defaulted", "applied", [], '--time "applied": .*did you mean "applied_at"'),
        ("defaulted", "", ["regio"], '--ignore "regio": .*did you mean "region"'),
        ("zzz", "", [], '--target "zzz": .* it has applied_at, age, income'),
        ("defaulted", "defaulted", [], "also --time or in --ignore"),
    ],
)
def test_a_wrong_column_is_named_with_the_nearest(
    data: Path, tmp_path: Path, target: str, time: str, ignore: list[str], said: str
) -> None:
    with pytest.raises(InitError, match=said):
        init(data, target, time=time, ignore=ignore, out=tmp_path / "evergreen.toml")

    assert not (tmp_path / "evergreen.toml").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nix\.parquet does not exist"):
        init(tmp_path / "nix.parquet", "y", out=tmp_path / "evergreen.toml")


def test_a_target_with_one_value_is_refused(tmp_path: Path) -> None:
    honest().assign(y=1).to_csv(tmp_path / "rows.csv", index=False)

    with pytest.raises(InitError, match="1 different values: nothing to predict"):
        init(tmp_path / "rows.csv", "y", out=tmp_path / "evergreen.toml")


def test_rows_without_a_label_or_a_time_are_left_out_and_counted(data: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(data).astype({sample.TARGET: "Int64"})
    frame.loc[frame.index[:40], sample.TARGET] = None
    frame.loc[frame.index[30:45], sample.TIME] = None
    frame.to_parquet(data)

    report = init(data, sample.TARGET, time=sample.TIME, out=tmp_path / "evergreen.toml")

    assert (report.rows, report.without_label, report.without_time, report.task) == (555, 40, 5, "binary")
    assert "# Found in 555 rows: binary: 0, 1." in (tmp_path / "evergreen.toml").read_text()


def test_a_target_that_is_never_known_is_refused(tmp_path: Path) -> None:
    honest().assign(y=np.nan).to_csv(tmp_path / "rows.csv", index=False)

    with pytest.raises(InitError, match="0 different values: nothing to predict"):
        init(tmp_path / "rows.csv", "y", out=tmp_path / "evergreen.toml")


# Suspicious columns


def test_honest_columns_are_not_suspected() -> None:
    assert warned(honest()) == []
    assert warned(sample.training_frame(2000), sample.TARGET, sample.TIME) == []


def test_the_target_again_is_found_in_any_disguise() -> None:
    frame = honest()
    frame["copy"] = frame["y"].map({0: "no", 1: "yes"})
    frame["same"] = frame["y"].astype(float)

    assert [line.split(" equals")[0] for line in warned(frame)] == ['"copy"', '"same"']


def test_a_column_that_tells_the_target_is_found() -> None:
    frame = honest()
    frame["status"] = np.where(frame["y"] == 1, np.where(frame["x"] > 1, "a", "b"), "c")
    frame["balance"] = np.where(frame["y"] == 1, 100.0, 0.0) + frame["x"]

    found = warned(frame)

    assert [line.split(" alone")[0] for line in found] == ['"status"', '"balance"']


def test_a_sum_that_is_the_target_is_found() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.gamma(2, 10, (1000, 3)), columns=["casual", "registered", "wind"])
    frame["y"] = frame["casual"] + frame["registered"]

    assert [line.split(" together")[0] for line in warned(frame)] == ['"casual" and "registered"']


def test_constant_columns_and_ids_are_found() -> None:
    frame = honest()
    frame["country"] = "DE"
    frame["empty"] = np.nan
    frame["customer"] = [f"c-{i:05d}" for i in range(len(frame))]
    frame["number"] = np.arange(len(frame))

    found = warned(frame)

    assert [line.split(" ")[0] for line in found] == ['"country"', '"empty"', '"customer"', '"number"']
    assert "always 'DE'" in found[0] and "always missing" in found[1] and "--time number" in found[3]


def test_a_moment_after_the_time_is_suspected_and_one_before_is_not() -> None:
    frame = honest()
    frame["at"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="h")
    frame["ordered"] = frame["at"] - pd.Timedelta(days=2)
    frame["paid"] = frame["at"] + pd.Timedelta(days=20)

    assert warned(frame, time="at") == ['"paid" is later than "at" in 100% of the rows: known only afterwards?']


def test_a_time_column_that_was_not_named_is_suggested() -> None:
    frame = honest()
    frame["at"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="h")

    assert warned(frame) == ['no --time was given: do the rows follow "at"? then say --time at']
