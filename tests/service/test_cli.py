from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from monitoring.schema import FeatureSchema
from service import sample
from service.command.cli import EXIT_CODES, app
from service.keys import management_token
from service.process import DISTRIBUTION
from service.revision import revision, short
from service.settings import Settings
from tests.folders import empty_folder
from tests.real_server import ROOT
from tests.stand_in import TOKEN, StandIn, serving

__all__ = ["empty_folder"]  # a fixture


@pytest.fixture
def service() -> Iterator[StandIn]:
    rows = sample.frame(500, start=4000)
    schema = FeatureSchema.infer(rows, sample.TARGET, ignore=(sample.TIME, sample.LABEL_DELAY))
    with serving(StandIn(schema)) as stand_in:
        yield stand_in


def evergreen(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def ask(service: StandIn, *arguments: str | Path) -> Result:
    return evergreen(*arguments, "--url", service.url, "--token", TOKEN)


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# The command itself


def test_help_imports_nothing_heavy() -> None:
    heavy = {"pandas", "numpy", "sklearn", "bentoml", "evidently", "optuna", "sqlalchemy", "httpx", "pydantic", "rich"}
    program = f"""
import sys
from service.command.cli import EXIT_CODES, app
try:
    app(["--help"])
except SystemExit:
    pass
print("heavy:", *(set(sys.modules) & {heavy!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "traffic" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_version_is_the_installed_one() -> None:
    said = evergreen("--version").stdout.strip()

    version = importlib.metadata.version(DISTRIBUTION)
    assert said == (f"evergreen {version} ({short(made)})" if (made := revision()) else f"evergreen {version}")


def test_the_revision_is_what_a_release_left_or_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert revision.__wrapped__() == (asked.stdout.strip() or None)  # a copy without .git has none

    monkeypatch.setattr("service.revision.LEFT", tmp_path / "service" / "revision.txt")
    assert revision.__wrapped__() is None
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "revision.txt").write_text("0123456789abcdef0123\n")
    assert revision.__wrapped__() == "0123456789abcdef0123"
    assert (short("0123456789abcdef0123"), short("0123456789abcdef0123-changed")) == (
        "0123456789ab",
        "0123456789ab-changed",
    )


@pytest.mark.parametrize(
    "arguments", [["runs", "many"], ["traffic", "--rate", "-1"], ["nonsense"], ["init"], ["promote", "0"]]
)
def test_asked_wrongly_is_exit_2(arguments: list[str]) -> None:
    assert evergreen(*arguments).exit_code == 2


def test_a_setting_that_is_wrong_is_one_line_and_exit_2(empty_folder: Path) -> None:
    (empty_folder / "evergreen.toml").write_text("[serve]\nprot = 1\n")

    result = evergreen("status")

    assert result.exit_code == 2
    assert (
        result.stderr
        == f'evergreen: {empty_folder}/evergreen.toml: [serve] prot: no such setting, did you mean "port"?\n'
    )


def test_a_port_that_is_none_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SERVE__PORT", "1")  # so that what the option sets is gone after the test

    result = evergreen("serve", "--port", "70000")

    assert result.exit_code == 2
    assert "EVERGREEN_SERVE__PORT: expected a value less than or equal to 65535, got 70000" in result.stderr


def test_a_service_that_is_not_there_is_named_with_the_remedy() -> None:
    result = evergreen("status", "--url", "http://127.0.0.1:9")

    assert result.exit_code == 5
    assert len(result.stderr.splitlines()) == 1
    assert "no Evergreen answers at http://127.0.0.1:9" in result.stderr and "`evergreen serve`" in result.stderr


def test_a_url_that_is_none_is_one_line_too() -> None:
    result = evergreen("status", "--url", "here:there")

    assert result.exit_code == 5
    assert len(result.stderr.splitlines()) == 1


# Reading


def test_status_shows_versions_workers_and_the_last_check(service: StandIn) -> None:
    result = ask(service, "status")

    assert result.exit_code == 0
    assert result.stdout.startswith("Version 2 answers since")
    for words in (
        "evergreen   version 2, by onnx, adaptation 17, previous 1\n",
        "look        api-2 cannot load version 2: digest differs\n",
        "look        the gates doubt this version: log loss 0.7, always answering",
        "here\tapi-2\t1\t1\t2: digest differs\n",
        "record      12,345 bytes wait",
        "drift       yes, 25% of the features (income)\n",
        "quality     lost; newest rows served: AUC 0.71 (500 rows)\n",
        "labels      rows wait 3,600 s (measured from 4,210 labels), 312 do; 83% of the older ones have a label\n",
        "because     drift in 25% of the features\n",
    ):
        assert words in result.stdout


def test_replicas_are_shown_with_who_leads_who_is_away_and_whose_clock_is_wrong(service: StandIn) -> None:
    shown = [line.split("\t") for line in ask(service, "replicas").stdout.splitlines()]

    assert shown == [
        ["host", "home", "serves", "spool", "state"],
        ["alpha", "aaaa", "2", "all stored", "leads, this one, ready"],
        ["beta", "bbbb", "1", "all stored", "not ready: version 2 is being fetched, clock -61 s"],
        ["gamma", "cccc", "2", "5,120 B, 61.5 s", "away: last seen 2 h ago"],
    ]
    assert all("\t".join(line) in ask(service, "status").stdout for line in shown)
    assert [home["home"] for home in answer(ask(service, "replicas", "--json"))] == ["aaaa", "bbbb", "cccc"]


def test_a_replica_is_said_to_be_gone_by_its_id_or_host(service: StandIn) -> None:
    service.outcomes["gone"] = ("done", "gone")

    assert ask(service, "replicas", "gone", "beta", "--why", "sold").exit_code == 0
    assert service.queued == [("gone", "sold", "beta")]
    assert ask(service, "replicas", "gone", "delta").exit_code == 1


def test_every_reading_command_speaks_json(service: StandIn) -> None:
    service.queue("retrain", "because", None)

    assert answer(ask(service, "status", "--json"))["champion"] == 2
    assert answer(ask(service, "models", "--json"))["models"][0]["version"] == 3
    assert answer(ask(service, "runs", "--json"))[0]["why"] == "because"
    assert answer(ask(service, "runs", "1", "--json"))["id"] == 1
    assert answer(ask(service, "drift", "--json"))[0]["drift"]["share"] == 0.25
    assert answer(ask(service, "adaptation", "--json"))["in_force"] == 17


def test_every_reading_command_has_a_table(service: StandIn) -> None:
    service.queue("retrain", "because [of this]", None)

    assert "because [of this]" in ask(service, "runs").stdout
    assert "champion" in ask(service, "models").stdout and "AUC 0.83" in ask(service, "models").stdout
    assert "wasserstein" in ask(service, "drift").stdout
    shown = ask(service, "adaptation").stdout
    assert "version 2 answers with adaptation 17\n" in shown
    assert "residuals 70%, identity 30%" in shown and "shift-300" not in shown
    one = ask(service, "runs", "1").stdout
    assert "run 1: retrain, done, promoted, version 2" in one
    assert "the challenger is better by 0.03 [auc]" in one


def test_a_run_that_does_not_exist_is_said(service: StandIn) -> None:
    result = ask(service, "runs", "7")

    assert (result.exit_code, result.stderr) == (1, "evergreen: GET /manage/runs/7: 404 run 7 does not exist\n")


# The page


def test_open_prints_the_address_and_no_token_where_there_is_no_browser(
    service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_SECURITY__TOKEN", TOKEN)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(variable, raising=False)

    for asked in (["open", "--print"], ["open"]):
        result = evergreen(*asked, "--url", service.url)
        assert (result.exit_code, result.stdout) == (0, f"{service.url}/\n")
        assert "sign in with a token" in result.stderr and TOKEN not in result.output


def test_open_gives_the_browser_the_address_and_nothing_else(
    service: StandIn, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = empty_folder / "browser"
    browser.write_text(f'#!/bin/sh\necho "$@" > {empty_folder}/opened\n')
    browser.chmod(0o755)
    program = [sys.executable, "-m", "service.command.cli", "open", "--url", service.url]
    told = {"BROWSER": str(browser), "EVERGREEN_SECURITY__TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(program, env=os.environ | told, capture_output=True, text=True, check=True)

    assert (empty_folder / "opened").read_text() == f"{service.url}/\n"
    assert done.stdout == "" and f"opened {service.url}/" in done.stderr


def test_open_says_when_nothing_answers() -> None:
    result = evergreen("open", "--url", "http://127.0.0.1:9")

    assert result.exit_code == 5 and "no Evergreen answers" in result.stderr


# The token


def test_a_missing_token_says_how_to_give_it(service: StandIn) -> None:
    result = evergreen("status", "--url", service.url)

    assert result.exit_code == 1
    assert "401 no bearer token; give the management token: --token or EVERGREEN_SECURITY__TOKEN" in result.stderr


def test_the_token_of_this_machine_is_used_for_this_machine(service: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SECURITY__TOKEN", TOKEN)

    assert evergreen("status", "--url", service.url).exit_code == 0


def test_the_token_file_is_read_and_never_made(service: StandIn, empty_folder: Path) -> None:
    evergreen("status", "--url", service.url)
    assert not (empty_folder / "var").exists()

    management_token(Settings(home=empty_folder))
    (empty_folder / "var/token").write_text(TOKEN + "\n")
    assert evergreen("status", "--url", service.url).exit_code == 0


# Writing


def test_retrain_and_rollback_and_promote_carry_their_reason(service: StandIn) -> None:
    assert "queued as run 1" in ask(service, "retrain", "--why", "new fees").stdout
    assert ask(service, "rollback", "--why", "complaints", "--no-wait").exit_code == 0
    assert ask(service, "promote", "3", "--why", "I know better", "--no-wait").exit_code == 0
    assert ask(service, "adaptation", "off", "--why", "an audit", "--no-wait").exit_code == 0
    assert ask(service, "pause", "--why", "an audit", "--no-wait").exit_code == 0
    assert "409 the loop is not paused" in ask(service, "resume").stderr
    service.paused = True
    assert ask(service, "resume", "--why", "it is over", "--no-wait").exit_code == 0

    assert service.queued == [
        ("retrain", "new fees", None),
        ("rollback", "complaints", None),
        ("promote", "I know better", 3),
        ("adaptation", "an audit", "off"),
        ("pause", "an audit", None),
        ("resume", "it is over", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "state", "outcome", "code"),
    [
        (("retrain", "--wait"), "done", "promoted", 0),
        (("retrain", "--wait"), "done", "kept", 3),
        (("retrain", "--wait"), "done", "no_action", 3),
        (("retrain", "--wait"), "failed", "crashed", 4),
        (("retrain", "--wait"), "failed", "interrupted", 4),
        (("rollback",), "done", "rolled_back", 0),
        (("rollback",), "failed", "refused", 3),
        (("rollback",), "failed", "not_loaded", 4),
        (("promote", "2"), "done", "promoted", 0),
        (("promote", "2"), "done", "no_action", 3),
        (("adaptation", "off"), "done", "off", 0),
        (("adaptation", "on"), "failed", "crashed", 4),
        (("pause",), "done", "paused", 0),
    ],
)
def test_the_exit_code_says_what_came_of_it(
    service: StandIn, arguments: tuple[str, ...], state: str, outcome: str | None, code: int
) -> None:
    service.outcomes[arguments[0]] = (state, outcome)

    result = ask(service, *arguments)

    assert result.exit_code == code
    assert f"run 1: {arguments[0]}, {state}" in result.stdout


def test_a_pushed_model_arrives_as_it_was_and_is_refused_or_promoted(service: StandIn, empty_folder: Path) -> None:
    model = empty_folder / "model.skops"
    model.write_bytes(b"PK\x03\x04 a zip")

    assert ask(service, "push", model, "--why", "my own & better", "--wait").exit_code == 0
    service.outcomes["push"] = ("done", "refused")
    refused = ask(service, "push", model, "--wait", "--json")

    assert service.queued[0] == ("push", "my own & better", b"PK\x03\x04 a zip")
    assert (refused.exit_code, json.loads(refused.stdout)["outcome"]) == (3, "refused")


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("done", "promoted"), ("done", "kept"), ("done", "refused"), ("failed", "crashed"), ("running", None)],
)
def test_retrain_and_push_exit_alike_for_alike_verdicts(
    service: StandIn, empty_folder: Path, state: str, outcome: str | None
) -> None:
    model = empty_folder / "model.skops"
    model.write_bytes(b"PK\x03\x04 a zip")
    service.outcomes = dict.fromkeys(("retrain", "push"), (state, outcome))
    wait = ("--wait", "--timeout", "0.2")

    codes = [ask(service, *asked, *wait).exit_code for asked in (("retrain",), ("push", model))]

    expected = {"promoted": 0, "kept": 3, "refused": 3, "crashed": 4, None: 5}[outcome]
    assert codes == [expected, expected]


def test_the_help_says_what_the_exit_codes_mean() -> None:
    shown = evergreen("--help").stdout

    for line in EXIT_CODES.replace("\b\n", "").splitlines():
        assert line.strip() in shown
    for name in ("retrain", "push"):
        assert "0 when it was promoted, 3 when the champion stays" in " ".join(evergreen(name, "--help").stdout.split())


def test_a_pickle_is_not_even_sent(service: StandIn, empty_folder: Path) -> None:
    (empty_folder / "model.skops").write_bytes(pickle.dumps({"a": 1}))

    result = ask(service, "push", empty_folder / "model.skops")

    assert result.exit_code == 1
    assert "is a pickle, which could run any code" in result.stderr
    assert service.queued == []


def test_a_model_file_that_is_missing_is_named(service: StandIn) -> None:
    result = ask(service, "push", "nix.skops")

    assert (result.exit_code, result.stderr) == (2, "evergreen: cannot read nix.skops: No such file or directory\n")


# Traffic and init


def test_traffic_of_the_sample_ends_with_a_summary(service: StandIn) -> None:
    result = evergreen(
        *("traffic", "--data", "sample", "--rate", "0", "--from", "4000", "--until", "4300", "--label-delay", "0.05"),
        *("--url", service.url),
    )

    assert result.exit_code == 0
    assert "rows sent      300 of 300" in result.stdout
    assert "labels sent    300" in result.stdout
    assert "versions seen  1 (300 rows)" in result.stdout


def test_traffic_of_a_file_takes_target_and_time_from_the_settings(service: StandIn, empty_folder: Path) -> None:
    rows = sample.frame(200, start=4000).drop(columns=sample.LABEL_DELAY)
    rows.sample(frac=1, random_state=0).to_parquet(empty_folder / "rows.parquet")
    started = evergreen("init", "--data", "rows.parquet", "--target", "defaulted", "--time", "applied_at", "--json")
    assert answer(started)["task"] == "binary"

    options = (
        "--rate",
        "0",
        "--clients",
        "1",
        "--from",
        "50%",
        "--ids-out",
        "ids.jsonl",
        "--url",
        service.url,
        "--json",
    )
    summary = answer(evergreen("traffic", *options))

    assert (summary["rows_sent"], summary["labels_sent"], summary["versions"]) == (100, 100, {"1": 100})
    assert [record["income"] for record in service.records] == rows["income"].iloc[100:].tolist()
    assert len((empty_folder / "ids.jsonl").read_text().splitlines()) == 100


def test_traffic_with_a_failed_row_is_exit_1_and_says_why(service: StandIn) -> None:
    service.refuses = lambda request: (503, "busy") if request == 1 else None

    result = evergreen("traffic", "--rate", "0", "--until", "4300", "--batch", "100", "--url", service.url)

    assert result.exit_code == 1
    assert "rows failed    100" in result.stdout
    assert "failed 1 times: POST /predict: 503 busy" in result.stderr


def test_traffic_of_a_file_without_a_target_asks_for_it(empty_folder: Path) -> None:
    result = evergreen("traffic", "--data", "rows.csv")

    assert result.exit_code == 2
    assert "--target" in result.stderr


def test_scenarios_are_of_the_sample_only(empty_folder: Path) -> None:
    assert evergreen("traffic", "--data", "rows.csv", "--target", "y", "--scenario", "abrupt").exit_code == 2


def test_init_says_what_it_found(empty_folder: Path) -> None:
    sample.training_frame(300).assign(bank="ours").to_csv("rows.csv", index=False)

    result = evergreen("init", "--data", "rows.csv", "--target", "defaulted", "--ignore", "applied_at,region")

    assert result.exit_code == 0
    assert f"wrote {empty_folder}/evergreen.toml" in result.stdout
    assert '300 rows, predicting "defaulted" (binary)' in result.stdout
    table = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    assert table[0] == ["column", "kind", "use", "line", "why"]
    assert ["defaulted", "binary", "target", "", ""] in table and ["age", "numeric", "feature", "", ""] in table
    (bank,) = (row for row in table if row[0] == "bank")
    assert bank[2] == "left out" and bank[4] == "constant: always 'ours'"
    assert '"bank",' in (empty_folder / "evergreen.toml").read_text().splitlines()[int(bank[3]) - 1]
    assert f"to bring a column back take its line out of {empty_folder}/evergreen.toml" in result.stdout
    assert evergreen("init", "--data", "rows.csv", "--target", "defaulted").exit_code == 1


def test_init_counts_the_rows_without_a_label(empty_folder: Path) -> None:
    frame = sample.training_frame(300)
    frame.assign(defaulted=frame["defaulted"].where(frame.index >= 7)).to_csv("rows.csv", index=False)

    result = evergreen("init", "--data", "rows.csv", "--target", "defaulted", "--time", "applied_at")

    assert (result.exit_code, result.stderr) == (0, "")
    assert '293 rows, predicting "defaulted" (binary)' in result.stdout
    assert "7 rows without a label are left out" in result.stdout


# The doctor


def test_the_doctor_finds_a_healthy_machine_healthy(service: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SERVE__PORT", service.url.rpartition(":")[2])

    found = {each["check"]: each for each in answer(evergreen("doctor", "--json"))}

    assert {"python", "packages", "settings", "data", "folder", "disk", "token", "labels", "store", "port"} == set(
        found
    )
    assert found["port"]["found"] == f"an Evergreen answers at {service.url}"


def test_the_doctor_sees_a_package_that_would_be_imported_instead(empty_folder: Path) -> None:
    (empty_folder / "training").mkdir()
    assert "shadow" not in evergreen("doctor").stdout, "a folder of data is no package"
    (empty_folder / "training" / "__init__.py").touch()

    result = evergreen("doctor")

    assert result.exit_code == 1
    assert "shadow evergreen's own package 'training'" in " ".join(result.stdout.split())


def test_the_doctor_sees_a_token_that_others_can_read(empty_folder: Path) -> None:
    management_token(Settings(home=empty_folder))
    (empty_folder / "var/token").chmod(0o644)

    result = evergreen("doctor")

    assert result.exit_code == 1
    assert "has mode 644: others can read it" in result.stdout
