"""`evergreen models show | compare | reproduce | lineage | tag | note`: from files, and of a running service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result
from rich.cells import cell_len
from typer.testing import CliRunner

from service.command.cli import app
from service.command.version_lines import (
    comparison_lines,
    lineage_lines,
    reproduction_lines,
    reproduction_sentence,
    version_lines,
)
from service.command.versions import versions_of
from service.configuration import load
from tests.lived import lived
from tests.paged import Paged, grown, here, there
from tests.places import TOKEN as LEASE
from tests.places import Place, first
from tests.stand_in import TOKEN
from tests.wired import serving
from training.comparison import Comparison
from training.lineage import Traced
from training.reproduction import Changed, Recorded, Reproduction

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

__all__ = ["first", "grown", "here", "lived", "there"]  # fixtures

Run = Callable[..., Result]
MADE = Reproduction(
    version=3,
    estimator="LogisticRegression",
    trained_on=12_345,
    last_fit=True,
    rows=2000,
    identical=2000,
    largest=None,
    served_by="onnx",
    recorded=Recorded(),
    changed=(),
    note="",
    seconds=1.0,
)


@pytest.fixture
def run(lived: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The command, of the deployment `lived`."""
    home = tmp_path / "home"
    for name, value in {
        "HOME": home,
        "STORE__URL": f"sqlite:///{home}/evergreen.db",
        "STORE__VAR": home,
        "MODEL__NAME": "credit",
        "TRAINING__NICE": "0",
    }.items():
        monkeypatch.setenv(f"EVERGREEN_{name}", str(value))

    def called(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["models", *map(str, arguments)])

    yield called


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def narrow(lines: list[str]) -> list[str]:
    """The lines, which fit 80 columns."""
    assert [line for line in lines if cell_len(line) > 80] == []
    return lines


def test_show_says_in_a_sentence_what_a_version_is_then_where_it_comes_from(run: Run) -> None:
    found = said(run("show", 2, "--json"))
    lines = narrow(version_lines(found, 80))

    assert " ".join(lines[:2]).startswith("Version 2 answers since ")
    assert "retrained on 1,360 rows, AUC 0.9" in " ".join(lines[:2])
    text = " ".join(" ".join(lines).split())
    for words in (
        "made run 3, retrain by test (quality), took over from version 1, decided by check 2",
        "data 1,360 rows, 660 of them recorded, snapshot " + found["manifest"]["data"]["snapshot"][:12],
        "fitted again to all rows after it was judged",
        "answers 450, ",
        "adapted 2 times",
        "✓ quality: log loss",
    ):
        assert words in text, words
    pushed = {
        **found,
        "origin": "push",
        "lineage": {**found["lineage"], "data": {**found["lineage"]["data"], "fitted": None}},
    }
    text = " ".join(" ".join(version_lines(pushed, 80)).split())
    assert "; pushed, AUC 0.9" in text and "judged on 1,360 rows" in text and " fitted to 1,360" not in text
    plain = run("show", 1)
    assert plain.stdout.splitlines()[0].startswith("Version 1 answered until ")
    assert "the first one, trained on 700 rows" in plain.stdout.splitlines()[0]


def test_compare_says_in_a_sentence_how_far_two_versions_are_apart(run: Run, lived: Place) -> None:
    found = said(run("compare", 1, 2, "--rows", 300, "--json"))
    lines = narrow(comparison_lines(found, 80))

    sentence = " ".join(lines[: lines.index("")])
    agree = found["predictions"]["agree"]
    answers = f"{agree} of 300 answers agree; labels speak for version 2"
    assert sentence == f"Version 1 beside version 2: data differ; {answers}."
    heads = [line.split()[0] for before, line in pairwise(lines) if not before]
    assert heads[1:] == ["made", "data", "on", "gate", "importance", "slice", "the"]
    page = {key: value for key, value in found.items() if key != "predictions"}
    assert msgspec.convert(page, Comparison).b.run == 3
    assert "all 50 predictions are identical bit for bit" in run("compare", 2, 2, "--rows", 50).stdout


def test_an_artefact_on_another_host_leaves_the_rest_to_be_compared(run: Run, lived: Place, tmp_path: Path) -> None:
    lived.registry.path(1).rename(tmp_path / "elsewhere")

    done = run("compare", 1, 2)

    assert done.exit_code == 0 and "not compared: the artefact of 'credit' version 1 is not at" in done.stdout
    assert run("reproduce", 1).exit_code == 1


def test_reproduce_says_one_sentence_first_and_its_exit_code_is_whether_all_is_the_same(run: Run, lived: Place) -> None:
    done = run("reproduce", 2)

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Version 2 was made again: 1,360 of 1,360 predictions identical bit for bit."
    assert "450 of the 450 newest recorded answers made again bit for bit" in done.stdout
    assert "450 of them through adaptations 1 and 2" in done.stdout
    assert "as they were when it was made" in done.stdout

    manifest = lived.registry.manifest(1)
    lived.registry.amend(1, manifest.changed(seed=5, parameters={"max_iter": 20}, libraries={"numpy": "1"}), LEASE)
    other = run("reproduce", 1, "--rows", 100, "--json")
    told = json.loads(other.stdout)
    assert (other.exit_code, told["same"], told["rows"]) == (1, False, 100)
    assert [one["name"] for one in told["changed"]] == ["numpy"] and told["largest"] > 0


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (MADE, "Version 3 was made again: 2,000 of 2,000 predictions identical bit for bit."),
        (
            msgspec.structs.replace(MADE, identical=12, largest=0.25),
            "Version 3 was made again: 12 of 2,000 predictions identical bit for bit, the largest difference is 0.25.",
        ),
        (
            msgspec.structs.replace(MADE, recorded=Recorded(rows=50, identical=49)),
            "Version 3 was made again: 2,000 of 2,000 predictions identical bit for bit, but only 49 of 50 recorded "
            "answers.",
        ),
    ],
)
def test_the_sentence_says_what_is_the_same(made: Reproduction, sentence: str) -> None:
    assert reproduction_sentence(made) == sentence


def test_what_changed_since_is_named_within_80_columns() -> None:
    changed = (
        Changed("numpy", "1.26.4", "2.4.6"),
        Changed("xgboost", None, "3.0"),
        Changed("machine", "Linux x86_64", "Linux aarch64"),
    )
    recorded = Recorded(rows=900, identical=900, adapted=700, adaptations=(4, 5, 6, 9), left_out=100)

    text = " ".join(
        " ".join(
            narrow(reproduction_lines(msgspec.structs.replace(MADE, changed=changed, recorded=recorded), 80))
        ).split()
    )

    assert "numpy 1.26.4 then, 2.4.6 now; xgboost absent then, 3.0 now" in text
    assert "700 of them through adaptations 4, 5, 6 and 9" in text
    assert "100 recorded answers whose adaptation is not kept any more" in text


def test_lineage_goes_from_an_answer_a_run_and_a_snapshot_to_the_version(run: Run) -> None:
    answer = said(run("lineage", "--answer", "600-3", "--json"))

    assert [(one["version"], one["how"]) for one in answer["versions"]] == [(1, "answered it"), (2, "learnt from it")]
    narrow(lineage_lines(msgspec.convert(answer, Traced), 80))
    assert run("lineage", "--run", 3).stdout.splitlines()[0] == "Run 3: version 2 was made by it."
    assert run("lineage", "--run", 4).stdout.splitlines()[0] == "Run 4: no version came of it."
    digest = said(run("show", 2, "--json"))["snapshot"]
    assert "version 2 was made from it." in run("lineage", "--snapshot", digest[:10]).stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", 9), 1, "has no version 9; there are 2, 1"),
        (("compare", 1, 9), 1, "has no version 9; there are 2, 1"),
        (("reproduce", 9), 1, "has no version 9; there are 2, 1"),
        (("tag", 9, "x"), 1, "has no version 9; there are 2, 1"),
        (("note", 1, " "), 1, "a note is a text"),
        (("tag", 1, "two words"), 1, "a tag is 1 to 40 letters"),
        (("lineage", "--answer", "nobody"), 1, "no answer with the id 'nobody'"),
        (("lineage", "--run", 999), 1, "run 999 does not exist"),
        (("lineage", "--snapshot", "0" * 8), 1, "no version and no run has a snapshot 00000000"),
        (("lineage",), 2, "give one of --answer ID, --run N and --snapshot DIGEST"),
        (("lineage", "--run", 1, "--answer", "a"), 2, "give one of"),
        (("show", 0), 2, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_said_in_one_line(run: Run, arguments: tuple[object, ...], code: int, words: str) -> None:
    done = run(*arguments)

    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr


def test_in_a_folder_without_a_store_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "empty"))

    for arguments in (["show", "1"], ["compare", "1", "2"], ["reproduce", "1"], ["tag", "1", "x"]):
        done = CliRunner().invoke(app, ["models", *arguments])
        assert done.exit_code == 1 and "run `evergreen train` first" in done.stderr
    assert not (tmp_path / "empty").exists()


def test_tags_and_notes_stand_where_versions_are_shown(run: Run) -> None:
    assert run("tag", 2, "prod", "fees-2026").stdout == "version 2 is tagged prod, fees-2026\n"
    assert run("tag", 2, "--remove", "prod", "--why", "not yet").stdout == "version 2 is tagged fees-2026\n"
    assert run("tag", 2, "--remove", "fees-2026").stdout == "version 2 has no tag\n"
    assert said(run("tag", 2, "v7", "--json"))["tags"] == ["v7"]
    assert run("note", 2, "learnt the new fees").exit_code == 0

    shown = run("show", 2).stdout
    assert "tags" in shown and "v7" in shown and "learnt the new fees" in shown


def test_a_running_service_tells_and_keeps_the_same(here: Paged, tmp_path: Path) -> None:
    with serving(here.worker) as served:
        url = f"http://127.0.0.1:{served.port}"

        def asked(*arguments: object) -> Result:
            return CliRunner().invoke(app, ["models", *map(str, arguments), "--url", url, "--token", TOKEN])

        assert asked("tag", 2, "prod").stdout == "version 2 is tagged prod\n"
        assert asked("note", 2, "by wire").exit_code == 0
        bad = asked("tag", 2, "two words")
        assert bad.exit_code == 1 and "400" in bad.stderr
        assert asked("show", 9).exit_code == 1
        over = said(asked("show", 2, "--json"))
        compared = said(asked("compare", 1, 2, "--json"))
        assert "leave out --url where these are" in asked("compare", 1, 2).stdout
        listed = CliRunner().invoke(app, ["models", "--url", url, "--token", TOKEN])
        assert "prod" in listed.stdout

    home = tmp_path / "home"
    settings = load(
        environ={
            "EVERGREEN_HOME": str(home),
            "EVERGREEN_STORE__URL": f"sqlite:///{home}/evergreen.db",
            "EVERGREEN_STORE__VAR": str(home),
            "EVERGREEN_MODEL__NAME": "credit",
        }
    )
    with versions_of(settings) as known:
        assert json.loads(json.dumps(known.version(2))) == over
        assert json.loads(json.dumps(known.compare(1, 2))) == compared
    assert [one["who"] for one in over["notes"]] == ["admin"] and over["tags"] == ["prod"]


def test_the_page_and_the_management_api_compare_alike(there: Paged) -> None:
    assert there.get("/page/versions/1/2") == there.get("/manage/models/1/compare/2")
