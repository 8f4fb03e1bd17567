from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.schema import FeatureSchema
from service import sample
from service.command.columns import Column, decide, sorted_by_target
from service.command.init import USEFUL, InitError, init
from service.command.rows import read_rows
from service.configuration import load
from service.control.deployment import source
from service.settings import SECTIONS, SettingsError
from training.source import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "credit.parquet"
    path.parent.mkdir()
    sample.training_frame(600).to_parquet(path)
    return path


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


def test_a_query_a_glob_and_a_packed_file_train_what_init_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy as sa

    frame = sample.training_frame(600).drop(columns="returning")  # a word of SQL's own
    frame.to_sql("loans", sa.create_engine(f"sqlite:///{tmp_path}/bank.db"), index=False)
    frame.to_csv(tmp_path / "loans-2026.csv.gz", index=False, sep=";", decimal=",")
    (tmp_path / "deploy").mkdir()
    monkeypatch.chdir(tmp_path)
    for asked, kept in (
        (f"sqlite:///{tmp_path}/bank.db SELECT * FROM loans", f"sqlite:///{tmp_path}/bank.db SELECT * FROM loans"),
        ("loans-*.csv.gz", str(tmp_path / "loans-*.csv.gz")),
        ("loans-2026.csv.gz", str(tmp_path / "loans-2026.csv.gz")),
    ):
        out = tmp_path / "deploy" / "evergreen.toml"
        report = init(asked, sample.TARGET, time=sample.TIME, out=out, force=True)
        settings = load(out, {})
        assert report.rows == 600
        assert settings.data.source == kept
        assert len(source(settings).frame) == 600


def test_a_password_is_not_written_into_the_file(tmp_path: Path) -> None:
    with pytest.raises(InitError, match="PGPASSWORD") as caught:
        init("postgresql://eva:geheim@host/bank SELECT 1 AS y", "y", out=tmp_path / "evergreen.toml")
    assert "geheim" not in str(caught.value)


def test_awkward_names_survive_the_way_through_the_file(tmp_path: Path) -> None:
    frame = honest().rename(columns={"x": "größe / m²", "colour": "a\\b'c"})
    frame.to_csv(tmp_path / "it's.csv", index=False)

    init(tmp_path / "it's.csv", "y", ignore=["a\\b'c"], out=tmp_path / "evergreen.toml")

    data = load(tmp_path / "evergreen.toml", {}).data
    assert (data.source, data.ignore) == (str(tmp_path / "it's.csv"), ("a\\b'c",))


def test_each_column_left_out_stands_on_a_line_with_its_reason_and_without_the_line_is_a_feature(
    tmp_path: Path,
) -> None:
    frame = honest().assign(country="D\nE", copy=lambda rows: rows["y"], colour2=lambda rows: rows["colour"])
    frame.to_parquet(tmp_path / "rows.parquet")
    out = tmp_path / "evergreen.toml"

    report = init(tmp_path / "rows.parquet", "y", out=out)

    assert load(out, {}).data.ignore == ("country", "copy", "colour2")
    lines = out.read_text().splitlines()
    left_out = {each.name: lines[each.line - 1] for each in report.columns if each.line is not None}
    assert left_out == {
        "country": r"""    "country",  # constant: always 'D\nE'""",
        "copy": '    "copy",  # copy of the target: it will not be known when predicting',
        "colour2": '    "colour2",  # duplicate of "colour"',
    }
    out.write_text("\n".join(line for line in lines if line != left_out["colour2"]))
    settings = load(out, {})
    assert settings.data.ignore == ("country", "copy")
    assert set(source(settings).schema.names) == {"x", "colour", "colour2"}


def test_a_file_of_which_nothing_is_left_is_refused_with_the_reasons(tmp_path: Path) -> None:
    honest()[["y"]].assign(country="DE").to_csv(tmp_path / "rows.csv", index=False)

    with pytest.raises(InitError, match=r"no column is left to predict from .*constant: always 'DE'"):
        init(tmp_path / "rows.csv", "y", out=tmp_path / "evergreen.toml")


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y %H:%M", "ms"])
def test_a_time_in_another_writing_orders_the_rows_that_train(tmp_path: Path, form: str) -> None:
    days = pd.Series(pd.date_range("2024-01-01", periods=1000, freq="D"))
    at = days.astype("datetime64[ms]").astype("int64") if form == "ms" else days.dt.strftime(form)
    honest().assign(at=at).sample(frac=1, random_state=1).to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "evergreen.toml"

    init(tmp_path / "rows.csv", "y", time="at", out=out)

    prepared = source(load(out, {}))
    assert prepared.schema.names == ("x", "colour")
    assert prepared.frame["_at"].tolist() == (days.astype("datetime64[s]").astype("int64")).tolist()
    assert prepared.frame["x"].tolist() == honest()["x"].astype("float32").tolist()


def test_a_time_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    dates = ["05/04/2026", "02/03/2026", "06/01/2026", "07/02/2026"] * 250
    honest().assign(at=dates).to_csv(tmp_path / "rows.csv", index=False)

    with pytest.raises(InitError, match="'at': is '05/04/2026' written %d/%m/%Y or %m/%d/%Y"):
        init(tmp_path / "rows.csv", "y", time="at", out=tmp_path / "evergreen.toml")


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


# What is decided of a column


def decided(frame: pd.DataFrame, target: str = "y", time: str = "") -> list[Column]:
    schema = FeatureSchema.infer(frame, target, ignore=[time] if time else [])
    return decide(frame, schema, time=time)


def left_out(frame: pd.DataFrame, target: str = "y", time: str = "") -> dict[str, str]:
    """Column left out → why."""
    return {each.name: each.why for each in decided(frame, target, time) if each.use == "left out"}


def noted(frame: pd.DataFrame, target: str = "y", time: str = "") -> dict[str, str]:
    """Feature → what to look at."""
    return {each.name: each.why for each in decided(frame, target, time) if each.use == "feature" and each.why}


def hours(rows: int = 1000) -> pd.Series:
    return pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows), unit="h"))


def test_honest_columns_are_features_without_a_note() -> None:
    for frame, target, time in ((honest(), "y", ""), (sample.training_frame(2000), sample.TARGET, sample.TIME)):
        assert {(each.use, each.why) for each in decided(frame, target, time)} == {("feature", "")}


def test_the_target_again_is_found_in_any_disguise() -> None:
    frame = honest()
    frame["copy"] = frame["y"].map({0: "no", 1: "yes"})
    frame["same"] = frame["y"].astype(float)

    assert left_out(frame) == dict.fromkeys(
        ("copy", "same"), "copy of the target: it will not be known when predicting"
    )


def test_a_column_that_tells_the_target_is_left_out_with_the_measure_and_its_value() -> None:
    frame = honest()
    frame["status"] = np.where(frame["y"] == 1, np.where(frame["x"] > 1, "a", "b"), "c")
    frame["balance"] = np.where(frame["y"] == 1, 100.0, 0.0) + frame["x"]

    assert left_out(frame) == dict.fromkeys(
        ("status", "balance"),
        "leak: alone tells the target (accuracy above guessing 1.000); is it known when predicting?",
    )


def test_a_column_that_tells_much_of_the_target_is_a_feature_to_look_at() -> None:
    frame = honest()
    wrong = np.random.default_rng(1).random(1000) < 0.02
    frame["reply"] = np.where(wrong, 1 - frame["y"], frame["y"]).astype(str)

    assert noted(frame)["reply"].startswith("alone tells much of the target (accuracy above guessing 0.9")


def test_a_sum_that_is_the_target_is_left_out() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.gamma(2, 10, (1000, 3)), columns=["casual", "registered", "wind"])
    frame["y"] = frame["casual"] + frame["registered"]

    why = "leak: casual and registered together add up to the target (R² 1.000); are they known when predicting?"
    assert left_out(frame) == {"casual": why, "registered": why}


def test_constants_duplicates_ids_and_free_text_are_left_out() -> None:
    random = np.random.default_rng(2)
    words = np.array(["late", "again", "car", "paid", "asked", "came", "not", "well"])
    frame = honest()
    frame["country"] = "DE"
    frame["empty"] = np.nan
    frame["customer"] = [f"c-{i:05d}" for i in range(len(frame))]
    frame["number"] = np.arange(len(frame))
    frame["shuffled"] = random.permutation(len(frame))
    frame["account_id"] = random.choice(10**9, len(frame), replace=False)
    frame["colour_again"] = frame["colour"]
    frame["remark"] = [" ".join(random.choice(words, 6)) for _ in range(len(frame))]

    assert left_out(frame) == {
        "country": "constant: always 'DE'",
        "empty": "constant: always missing",
        "customer": "id: 1,000 different values in 1,000 rows",
        "number": "id: 1,000 different whole numbers in 1,000 rows; --time number if it orders the rows",
        "shuffled": "id: 1,000 different whole numbers in 1,000 rows",
        "account_id": "id: 1,000 different whole numbers in 1,000 rows",
        "colour_again": 'duplicate of "colour"',
        "remark": f"free text: {frame['remark'].nunique():,} different texts of several words in 1,000 rows",
    }


def test_a_category_of_too_many_values_is_left_out_and_one_of_many_common_ones_is_not() -> None:
    frame = honest(6000)
    random = np.random.default_rng(1)
    frame["plane"] = [f"N{number}" for number in random.integers(0, 1500, len(frame))]
    frame["street"] = [f"S{number % 750}" for number in range(len(frame))]  # each in eight rows
    frame["place"] = [f"P{number}" for number in random.integers(0, 200, len(frame))]

    found = left_out(frame)

    assert set(found) == {"plane", "street"}
    assert found["plane"].startswith("high cardinality: 1,4")
    assert "of the rows with one that stands in fewer than 10" in found["plane"]
    assert noted(frame) == {}


def test_measurements_that_never_repeat_are_no_ids() -> None:
    random = np.random.default_rng(3)
    frame = honest().assign(income=random.choice(10**6, 1000, replace=False), weight=random.normal(size=1000))

    assert left_out(frame) == {}


def test_a_column_that_looks_like_time_is_proposed() -> None:
    seconds = hours().astype("datetime64[s]").astype("int64")
    written = {
        "dates": (hours(), ""),
        "iso": (hours().dt.strftime("%Y-%m-%d %H:%M"), ", dates as text, ISO8601"),
        "text": (hours().dt.strftime("%d.%m.%Y %H:%M"), ", dates as text, %d.%m.%Y %H:%M"),
        "seconds": (seconds, ", seconds since 1970"),
        "days": (hours().dt.strftime("%Y%m%d").astype(int), ", days as 20260131"),
        "milliseconds": (seconds * 1000, ", milliseconds since 1970"),
    }
    for column, how in written.values():
        why = f"looks like time{how}, and the rows stand in its order: --time event_time orders the rows by it"
        assert left_out(honest().assign(event_time=column)) == {"event_time": why}


def test_a_moment_in_whose_order_the_rows_do_not_stand_is_a_feature_to_look_at() -> None:
    born = hours().sample(frac=1, random_state=0, ignore_index=True)

    assert noted(honest().assign(born=born)) == {"born": "looks like time: do the rows follow it? then --time born"}


def test_date_texts_never_become_categories() -> None:
    days = pd.Series(pd.date_range("2020-01-01", periods=1000, freq="D")).sample(
        frac=1, random_state=0, ignore_index=True
    )
    frame = honest().assign(at=hours())
    frame["iso"] = days.dt.strftime("%Y-%m-%d")
    frame["german"] = days.dt.strftime("%d.%m.%Y")
    frame["odd"] = days.dt.strftime("%Y-%m-%d").where(days.index != 5, "unknown")
    frame["kind"] = days.dt.strftime("%d %b %Y").astype("category")
    frame["paid_at"] = days.astype("datetime64[s]").astype("int64")

    found = {each.name: each for each in decided(frame, time="at")}

    assert (found["iso"].use, found["iso"].kind) == ("feature", "datetime")
    assert {name: each.why.partition(":")[0] for name, each in found.items() if each.use == "left out"} == {
        "german": "dates as text, %d.%m.%Y",
        "odd": "dates (ISO8601), but also 'unknown'",
        "kind": "dates as text, %d %b %Y",
        "paid_at": "time as a number, seconds since 1970",
    }


def test_a_moment_after_the_time_is_left_out_and_one_before_is_not() -> None:
    random = np.random.default_rng(5)
    frame = honest().assign(at=hours())
    frame["ordered"] = frame["at"] - pd.to_timedelta(random.integers(1, 2000, 1000), unit="h")
    frame["paid"] = frame["at"] + pd.Timedelta(days=20)

    assert left_out(frame, time="at") == {
        "paid": 'leak: later than "at" in 100% of the rows; is it known when predicting?'
    }


def test_a_moment_is_not_compared_with_a_time_that_is_only_an_order() -> None:
    born = hours().sample(frac=1, random_state=0, ignore_index=True)

    assert left_out(honest().assign(born=born, seq=np.arange(1000)), time="seq") == {}


def test_what_only_grows_with_the_time_is_left_out() -> None:
    frame = honest().assign(at=hours(), total=np.linspace(0, 1, 1000).round(3), year=np.arange(1000) // 500)

    assert left_out(frame, time="at") == {"total": 'time again: grows with "at"'}
    assert left_out(frame)["total"] == 'time again: grows with "at"'
    assert left_out(frame.drop(columns="at")) == {}


# Sorted by target


def test_a_file_sorted_by_target_is_told_and_shuffled_if_asked(tmp_path: Path) -> None:
    honest().sort_values("y").to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "evergreen.toml"

    told = init(tmp_path / "rows.csv", "y", out=out)
    assert told.warnings == ("the rows are sorted by target: give --time COLUMN, or --shuffle if nothing orders them",)
    assert "# Look at this: the rows are sorted by target" in out.read_text()
    assert source(load(out, {})).frame["_label"].is_monotonic_increasing

    assert init(tmp_path / "rows.csv", "y", shuffle=True, out=out, force=True).warnings == ()
    settings = load(out, {"EVERGREEN_DATA__FIRST": "20%"})
    first = source(settings).frame
    assert settings.data.shuffle and 0.3 < first["_label"].mean() < 0.7
    pd.testing.assert_frame_equal(first, source(settings).frame)
    replayed = read_rows(settings.data.source, target="y", shuffle=True, until="20%", seed=settings.model.seed)
    assert first["x"].tolist() == replayed["x"].astype("float32").tolist()
    other = source(load(out, {"EVERGREEN_DATA__FIRST": "20%", "EVERGREEN_MODEL__SEED": "7"})).frame
    assert first["x"].tolist() != other["x"].tolist()


def test_shuffle_and_time_are_not_given_together(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InitError, match="--shuffle would undo the order of --time"):
        init(data, sample.TARGET, time=sample.TIME, shuffle=True, out=tmp_path / "evergreen.toml")
    with pytest.raises(SettingsError, match="`shuffle` would undo the order of time"):
        load(environ={"EVERGREEN_DATA__SHUFFLE": "1", "EVERGREEN_DATA__TIME": "at"})


@pytest.mark.parametrize("regression", [False, True])
def test_a_sorted_target_is_noticed_and_one_in_random_or_time_order_is_not(regression: bool) -> None:
    random = np.random.default_rng(4)
    values = random.normal(size=1000)
    target = pd.Series(values if regression else np.digitize(values, [-1, 1]))

    assert sorted_by_target(target.sort_values(), regression=regression)
    assert sorted_by_target(target.sort_values(ascending=False), regression=regression)
    assert not sorted_by_target(target, regression=regression)
    assert not sorted_by_target(target.sort_values().head(20), regression=regression)
    lasting = pd.Series(np.repeat(target.to_numpy()[:200], 5)) + (random.normal(size=1000) * 0.1 if regression else 0)
    assert not sorted_by_target(lasting, regression=regression)
