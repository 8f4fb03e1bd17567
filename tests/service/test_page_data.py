"""The numbers of the page are those of `/manage`, few whatever the past, and null where nothing is known."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from monitoring.store import checks, labels, predictions, runs
from service.web import shapes
from tests.paged import Paged, grown, here, paged, there
from tests.places import START, first, world
from tests.wired import add_token
from training.artefact import REFERENCE
from training.comparison import Comparison

__all__ = ["first", "grown", "here", "there"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

PARTS: dict[str, type[Any]] = {
    "state": shapes.State,
    "quality": shapes.Quality,
    "decisions": shapes.Decisions,
    "drift": shapes.Drift,
    "distribution": shapes.Distribution,
    "segments": shapes.Segments,
    "traffic": shapes.Traffic,
}


@pytest.fixture
def young(first: Path, tmp_path: Path, store_url: str) -> Iterator[Paged]:
    """A first version, and nothing else happened."""
    with paged(first, tmp_path / "home", store_url) as found:
        yield found


def shaped(found: Paged, part: str, **options: Any) -> Any:
    """An answer that has exactly its shape."""
    document = found.get(f"/page/{part}", **options)
    shape = PARTS[part.partition("?")[0]]
    value = msgspec.convert(document, shape, strict=True)
    assert msgspec.json.decode(msgspec.json.encode(value)) == document
    return value


def test_every_part_has_its_shape_and_says_what_manage_says(there: Paged) -> None:
    status = there.get("/manage/status")
    newest = there.get("/manage/drift")["checks"][0]

    state = shaped(there, "state")
    assert (state.version, state.previous, state.coverage) == (status["champion"], 1, status["coverage"])
    assert (state.model, state.task, state.served_since) == ("credit", "binary", status["served_since"])
    assert state.quality is not None and state.quality.value == newest["quality"]["value"]
    assert state.quality.low == pytest.approx(newest["quality"]["value"] - 1.96 * newest["quality"]["error"])
    assert (state.quality.rows, state.quality.check) == (newest["quality"]["rows"], newest["id"])
    assert (state.adaptation.number, state.adaptation.state) == (status["adaptation"], "in force")
    assert math.isclose(sum(state.adaptation.weights.values()), 1.0)
    assert [alert.text for alert in state.alerts] == status["alerts"]
    assert (state.name, set(state.scopes)) == ("admin", {"predict", "feedback", "read", "push", "operate"})
    assert state.versions == (2, 1)
    assert state.record.delays is not None and sum(state.record.delays.labels) == 960

    quality = shaped(there, "quality")
    assert (quality.metric, quality.series.check[-1], quality.span.of) == ("auc", newest["id"], 3)
    assert quality.series.served[-1] == newest["quality"]["value"]
    level = next(each["level"] for each in newest["quality"]["compared"] if each["metric"] == "auc")
    assert quality.series.holdout[-1] == level
    assert [(mark.kind, mark.run) for mark in quality.marks if mark.run] == [("promotion", 1), ("promotion", 3)]
    assert quality.losses.served and quality.losses.raw[-1] is not None

    drift = shaped(there, "drift")
    assert [check.id for check in drift.checks] == [1, 2, 3]
    assert [feature.name for feature in drift.features if feature.output] == ["prediction"]
    scores = {each["name"]: each["score"] for each in newest["drift"]["features"]}
    shown = {feature.name: row[-1] for feature, row in zip(drift.features, drift.scores, strict=True)}
    assert {name: shown[name] for name in scores} == scores
    weighed = [(f.importance or 0) * f.times for f in drift.features if not f.output]
    assert weighed == sorted(weighed, reverse=True)

    segments = shaped(there, "segments")
    assert (segments.check, segments.metric) == (newest["id"], "auc")
    assert segments.value == newest["quality"]["slices"]["value"]
    assert [s.difference for s in segments.slices] == sorted(s.difference for s in segments.slices)

    traffic = shaped(there, "traffic")
    assert [(ribbon.version, ribbon.to is None) for ribbon in traffic.versions] == [(1, False), (2, True)]
    assert all(traffic.rate.exact) and traffic.rate.bin_s is not None
    assert sum(rate or 0 for rate in traffic.rate.rows_s) * traffic.rate.bin_s == pytest.approx(960)

    distribution = shaped(there, "distribution")
    assert distribution.classes == ("false", "true")
    assert distribution.predictions is not None and sum(distribution.predictions.counts) == 960
    assert distribution.labels is not None and sum(distribution.labels.counts) == 960
    shares = zip(*distribution.predictions_over_time.values.values(), strict=True)
    assert all(sum(share) == pytest.approx(1) for share in shares)


def test_decisions_come_newest_first_with_their_gates_and_page_on(there: Paged) -> None:
    listed = there.get("/manage/runs")["runs"]

    whole = shaped(there, "decisions").decisions
    first_page = msgspec.convert(there.get("/page/decisions?limit=1"), shapes.Decisions)
    rest = msgspec.convert(there.get(f"/page/decisions?before={first_page.before}"), shapes.Decisions)

    assert [one.run for one in whole] == [run["id"] for run in listed]
    assert (first_page.decisions, rest.decisions) == (whole[:1], whole[1:])
    assert rest.before is None and first_page.total == len(listed)
    promoted = next(one for one in whole if one.kind == "retrain")
    gates = next(run for run in listed if run["id"] == promoted.run)["record"]["verdict"]["gates"]
    assert [(chip.gate, chip.passed, chip.text) for chip in promoted.chips] == [
        (gate["name"], gate["passed"], gate["reason"]) for gate in gates
    ]
    assert "version 2 took over" in promoted.sentence


def test_checks_that_say_no_in_the_same_way_are_one_line_as_in_manage(here: Paged) -> None:
    alike = {"kind": "check", "state": "done", "outcome": "no_action", "trigger": "schedule", "who": "me", "version": 2}
    with here.engine.begin() as connection:
        for number in range(20):
            why = f"quality held: {0.9 + number / 1000} on {100 + number} rows"
            at = START + 5000 + number
            times = {"created_at": at, "started_at": at, "finished_at": at + 1}
            connection.execute(runs.insert().values(**alike, **times, why=why, record="{}"))

    whole = shaped(here, "decisions").decisions
    newest = whole[0]

    assert newest.count == newest.run - newest.first + 1 == 21, "the check before them said no in other words"
    assert newest.why == "quality held: 0.919 on 119 rows"
    assert newest.since < START + 5000 and newest.to == START + 5020
    folded = here.get("/manage/runs?folded=true")["runs"]
    assert [(one.run, one.first, one.count) for one in whole] == [
        (run["id"], run["first_id"], run["count"]) for run in folded
    ]
    without = msgspec.convert(here.get("/page/decisions?checks=0"), shapes.Decisions)
    assert newest.run not in {one.run for one in without.decisions} and without.total > len(without.decisions) > 0
    assert {one.kind for one in without.decisions}.isdisjoint({"check"})
    assert here.get("/page/decisions?checks=1") == here.get("/page/decisions")


def test_one_run_and_two_versions_tell_their_story(there: Paged) -> None:
    document = there.get("/page/runs/3")
    story = msgspec.convert(document, shapes.Story)
    manage = there.get("/manage/runs/3")

    assert (story.outcome, story.version, story.record) == ("promoted", 2, manage["record"])
    assert story.passed is True and len(story.gates) == len(manage["record"]["verdict"]["gates"])
    assert story.quality is not None and story.quality.challenger == manage["record"]["quality"]["challenger"]
    assert story.data is not None and story.data.rows == manage["record"]["data"]["rows"]
    assert {rows.use for rows in story.judged} == {"training", "judging"}
    assert {"check", "report", "version", "versions"} == {link.kind for link in story.links}
    assert (story.older, story.newer) == (2, 4)

    both = msgspec.convert(there.get("/page/versions/1/2"), Comparison)
    manifest = there.get("/manage/models/2")["manifest"]
    assert (both.a.version, both.b.version, both.b.run) == (1, 2, 3)
    assert both.b.value == manifest["quality"]["challenger"]
    assert {row.feature: row.b for row in both.importance} == manifest["importance"]
    assert {row.name: row.b for row in both.parameters} == manifest["parameters"]
    assert any(row.differs for row in both.data)
    assert both.slice_metric == "auc" and both.slices


def test_what_there_is_not_is_a_404_that_says_so(here: Paged) -> None:
    for path in ("runs/999", "versions/1/9", "drift/99/income", "drift/1/nothing", "nowhere", "drift/1", "runs/0"):
        answer = here.ask("GET", f"/page/{path}")
        assert answer.status_code == 404 and answer.json()["error"], path


@pytest.mark.parametrize(
    "query", ["since=x", "until=nan", "since=5&until=4", "since=inf", "since=1e300"]
)  # fmt: skip
@pytest.mark.parametrize("part", ["quality", "drift", "distribution", "traffic"])
def test_a_span_that_is_none_is_malformed(here: Paged, part: str, query: str) -> None:
    answer = here.ask("GET", f"/page/{part}?{query}")

    assert answer.status_code == 400 and query.partition("=")[0] in answer.json()["error"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=1.5", "before=x", "before=99999999999", "checks=2", "checks=no"],
)
def test_a_page_of_decisions_that_is_none_is_malformed(here: Paged, query: str) -> None:
    assert here.ask("GET", f"/page/decisions?{query}").status_code == 400


def test_a_histogram_shows_the_rows_of_the_reference_and_of_the_window(there: Paged) -> None:
    import pandas as pd

    reference = pd.read_parquet(there.place.registry.path(2) / REFERENCE)
    income = msgspec.convert(there.get("/page/drift/3/income"), shapes.Histogram)
    purpose = msgspec.convert(there.get("/page/drift/3/purpose"), shapes.Histogram)
    output = msgspec.convert(there.get("/page/drift/3/prediction"), shapes.Histogram)

    assert income.reference is not None and income.window is not None and income.edges is not None
    assert income.reference.rows == len(reference) and income.window.rows == 300
    inside = reference["income"].between(income.edges[0], income.edges[-1]).sum()
    assert sum(income.reference.counts) == inside
    sent = world(300, 7, moved=True)
    assert sum(income.window.counts) + income.window.below + income.window.above == 300
    assert income.window.below == (sent["income"].astype("float32") < income.edges[0]).sum()
    assert purpose.categories is not None and purpose.window is not None and purpose.reference is not None
    assert dict(zip(purpose.categories, purpose.window.counts, strict=True)) == sent["purpose"].value_counts().to_dict()
    assert dict(zip(purpose.categories, purpose.reference.counts, strict=True)) == (
        reference["purpose"].value_counts().to_dict()
    )
    assert output.window is not None and output.window.rows == 300
    assert output.reference is not None and output.reference.rows == reference["_holdout"].sum()


def test_a_window_that_is_gone_from_the_record_is_not_known(here: Paged) -> None:
    with here.engine.begin() as connection:
        connection.execute(predictions.delete().where(predictions.c.version == 2))

    found = msgspec.convert(here.get("/page/drift/3/income"), shapes.Histogram)

    assert found.window is None and "no longer in the record" in found.note
    assert found.reference is not None


def test_a_span_shows_only_what_lies_in_it(there: Paged) -> None:
    whole = shaped(there, "quality")
    second = whole.series.at[1]

    quality = msgspec.convert(there.get(f"/page/quality?since={second}&until={second + 1}"), shapes.Quality)
    drift = msgspec.convert(there.get(f"/page/drift?until={second}"), shapes.Drift)

    assert (quality.series.check, quality.span.of) == ((2,), 1)
    assert (quality.span.since, quality.span.until) == (whole.span.since, whole.span.until)
    assert [check.id for check in drift.checks] == [1]


def test_of_a_long_past_at_most_500_points_are_sent_its_ends_among_them(there: Paged) -> None:
    real = there.get("/manage/drift")["checks"][0]
    row = {
        "version": 2,
        "drift": msgspec.json.encode(real["drift"]).decode(),
        "quality": msgspec.json.encode(real["quality"]).decode(),
        "decision": msgspec.json.encode(real["decision"]).decode(),
    }
    with there.engine.begin() as connection:
        connection.execute(checks.insert(), [{**row, "at": real["at"] + 60.0 * n} for n in range(1, 2998)])

    quality, drift = shaped(there, "quality"), shaped(there, "drift")

    assert quality.span.of == 3000
    assert 450 <= len(quality.series.at) <= shapes.MOST_POINTS
    assert {len(getattr(quality.series, name)) for name in shapes.QualitySeries.__struct_fields__} == {
        len(quality.series.at)
    }
    assert (quality.series.check[0], quality.series.at[-1]) == (1, quality.span.until)
    assert list(quality.series.at) == sorted(quality.series.at)
    assert len(drift.checks) <= shapes.MOST_POINTS and {len(each) for each in drift.times} == {len(drift.checks)}


def test_a_young_deployment_knows_little_and_says_so(young: Paged) -> None:
    state = shaped(young, "state")
    assert (state.version, state.quality, state.coverage, state.delay_s, state.waiting) == (1, None, None, None, None)
    assert (state.record.delays, state.lease is not None, state.previous) == (None, True, None)

    quality = shaped(young, "quality")
    assert (quality.metric, quality.series.at, quality.span.of, quality.span.since) == (None, (), 0, None)
    assert [mark.kind for mark in quality.marks] == ["promotion"]
    drift = shaped(young, "drift")
    assert (drift.features, drift.checks, drift.skipped) == ((), (), None)
    segments = shaped(young, "segments")
    assert (segments.check, segments.value) == (None, None) and segments.note
    distribution = shaped(young, "distribution")
    assert (distribution.predictions, distribution.labels, distribution.scores) == (None, None, None)
    traffic = shaped(young, "traffic")
    assert (traffic.rate.at, traffic.totals.p99_ms, traffic.span.since) == ((), None, None)
    assert traffic.totals.rows == 0


def test_before_the_first_version_no_version_was_in_service(young: Paged) -> None:
    with young.engine.begin() as connection:
        connection.execute(runs.delete())

    assert shaped(young, "traffic").versions == ()


def test_labels_of_one_class_leave_the_quality_unknown_and_nothing_breaks(here: Paged) -> None:
    with here.engine.begin() as connection:
        connection.execute(labels.update().values(label="true"))
    from training.cycle import run_cycle

    here.place.now += 120
    run_cycle(here.place.loop)

    state, segments = shaped(here, "state"), shaped(here, "segments")
    assert state.quality is not None
    assert (state.quality.value, state.quality.low, state.quality.state) == (None, None, "not known yet")
    assert "needed" in state.quality.why
    assert segments.value is None and "not defined" in segments.note
    assert shaped(here, "quality").series.served[-1] is None
    labelled = shaped(here, "distribution").labels
    assert labelled is not None and labelled.counts == (0, 960)


def test_an_answer_is_sent_once_until_something_changes(here: Paged) -> None:
    answer = here.ask("GET", "/page/decisions")
    etag = answer.headers["etag"]
    again = here.ask("GET", "/page/decisions", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")

    here.ask("POST", "/manage/retrain", json={"why": "new fees"})
    time.sleep(1.1)

    changed = here.ask("GET", "/page/decisions", headers={"if-none-match": etag})
    assert changed.status_code == 200
    assert changed.json()["decisions"][0]["kind"] == "retrain"


def test_each_asker_is_told_the_own_name(here: Paged) -> None:
    token = add_token(here.worker.settings.tokens_file, "viewer", ["read"])
    here.worker.keys.look()

    mine, other = here.get("/page/state"), here.get("/page/state", token=token)

    assert (mine["name"], other["name"], other["scopes"]) == ("admin", "viewer", ["read"])


def test_a_store_that_does_not_answer_is_a_503_and_no_more(here: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.ask("GET", "/page/state").status_code == 200
    time.sleep(1.1)
    with here.engine.begin() as connection:
        connection.execute(sa.text("alter table runs rename to runs_elsewhere"))

    answer = here.ask("GET", "/page/quality")

    assert answer.status_code == 503
    assert "the store does not answer" in answer.json()["error"] and answer.headers["retry-after"] == "5"


def test_the_page_writes_nothing(here: Paged) -> None:
    for part in PARTS:
        for method in ("POST", "PUT", "DELETE"):
            assert here.ask(method, f"/page/{part}", json={}).status_code == 405


def test_head_is_answered_without_a_body(here: Paged) -> None:
    answer = here.ask("HEAD", "/page/quality")

    assert (answer.status_code, answer.content) == (200, b"")
