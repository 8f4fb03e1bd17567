from __future__ import annotations

import ast
import multiprocessing
import re
import stat
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from service.configuration import load
from service.keys import ManagementToken, known_token, management_token
from service.settings import SECTIONS, Settings, SettingsError, row_at
from service.settings_table import table
from training.split import TrainPolicy


def written(folder: Path, text: str) -> Path:
    path = folder / "evergreen.toml"
    path.write_text(text)
    return path


def error_of(config: Path | None = None, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, environ)
    return str(caught.value)


# Sources


def test_without_a_file_everything_has_a_default_and_lies_under_var(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load(environ={})

    assert settings == Settings(home=tmp_path)
    assert settings.data.source == "sample"
    assert settings.store_url == f"sqlite:///{tmp_path}/var/evergreen.db"
    under = [settings.spool_dir, settings.snapshots_dir, settings.live_file, settings.token_file, settings.models_dir]
    assert {path.relative_to(tmp_path / "var").as_posix() for path in under} == {
        "spool",
        "snapshots",
        "live.json",
        "token",
        "bentoml/models",
    }


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    config = written(tmp_path, "[serve]\nport = 4000\nworkers = 3\n")

    settings = load(config, {"EVERGREEN_SERVE__PORT": "5000"})

    assert (settings.serve.port, settings.serve.workers, settings.serve.host) == (5000, 3, "127.0.0.1")


def test_the_file_is_found_in_the_home_and_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = written(tmp_path, "[serve]\nport = 4000\n")

    assert load(environ={"EVERGREEN_HOME": str(tmp_path)}).serve.port == 4000
    assert load(environ={"EVERGREEN_CONFIG": str(config)}).home == tmp_path


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nix.toml").startswith(f"--config: no file {tmp_path}/nix.toml")
    assert "EVERGREEN_CONFIG: no file" in error_of(EVERGREEN_CONFIG=str(tmp_path / "nix.toml"))


def test_a_variable_may_be_a_list_a_switch_or_a_number() -> None:
    environ = {
        "EVERGREEN_DATA__IGNORE": "a, b",
        "EVERGREEN_GATES__SENSITIVE": '["x,y"]',
        "EVERGREEN_DATA__FIRST": "2000",
    }

    settings = load(environ=environ)

    assert (settings.data.ignore, settings.data.first) == (("a", "b"), "2000")
    assert settings.gates.sensitive == ("x,y",)


def test_a_table_inside_a_file_may_say_the_first_rows_as_a_number(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[data]\nfirst = 2000\n"), {}).data.first == "2000"


def test_what_kubernetes_adds_for_a_service_called_evergreen_is_no_setting() -> None:
    links = {
        "EVERGREEN_SERVICE_HOST": "10.0.0.1",
        "EVERGREEN_SERVICE_PORT": "3000",
        "EVERGREEN_SERVICE_PORT_HTTP": "3000",
        "EVERGREEN_PORT": "tcp://10.0.0.1:3000",
        "EVERGREEN_PORT_3000_TCP": "tcp://10.0.0.1:3000",
        "EVERGREEN_PORT_3000_TCP_ADDR": "10.0.0.1",
        "EVERGREEN_PORT_3000_TCP_PORT": "3000",
        "EVERGREEN_PORT_3000_TCP_PROTO": "tcp",
        "EVERGREEN_DB_SERVICE_HOST": "10.0.0.2",
    }

    assert load(environ=links) == load(environ={})
    assert "EVERGREEN_PORT: no such setting" in error_of(EVERGREEN_PORT="3000")


# Errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\nprot = 1\n", '[serve] prot: no such setting, did you mean "port"?'),
        ("[data]\nport = 1\n", "[data] port: no such setting, did you mean [serve] port?"),
        ("[srve]\nport = 1\n", 'unknown section [srve], did you mean "serve"?'),
        ("port = 1\n", "unknown section [port], did you mean [serve] port?"),
        ("serve = 1\n", "serve is a section: write [serve]"),
        ('[serve]\nport = "3000"\n', '[serve] port: expected a whole number, got "3000"'),
        ("[serve]\nport = true\n", "[serve] port: expected a whole number, got true"),
        ("[serve]\nport = 0\n", "[serve] port: expected a value greater than or equal to 1, got 0"),
        ('[data]\nignore = "a"\n', '[data] ignore: expected a list, got "a"'),
        ('[data]\ntask = "guess"\n', "[data] task: expected 'auto', 'binary', 'multiclass' or 'regression', got"),
        ('[data]\nfirst = "120%"\n', '[data] first: expected rows ("3000") or a share ("20%"), got "120%"'),
        ('[data]\nsource = "x.csv"\n', "needs `target`"),
        ('[data]\nsource = "x.csv"\ntarget = "y"\ntime = "y"\n', 'target "y" is also `time` or in `ignore`'),
        ("[serve\n", "not TOML"),
    ],
)
def test_a_mistake_in_the_file_names_file_key_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    config = written(tmp_path, text)

    message = error_of(config)

    assert message.startswith(str(config))
    assert said in message


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EVERGREEN_SERVE__PROT", "1", 'no such setting, did you mean "EVERGREEN_SERVE__PORT"?'),
        ("EVERGREEN_SERVE_PORT", "1", 'no such setting, did you mean "EVERGREEN_SERVE__PORT"?'),
        ("EVERGREEN_HOMW", "/", 'no such setting, did you mean "EVERGREEN_HOME"?'),
        ("EVERGREEN_SERVE__PORT", "old", 'expected a whole number, got "old"'),
        ("EVERGREEN_SERVE__WORKERS", "1.5", "expected a whole number, got 1.5"),
        ("EVERGREEN_SERVE__POLL_INTERVAL_S", "0", "expected a value greater than 0, got 0"),
        ("EVERGREEN_MODEL__NAME", "Mine!", "got"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable_and_the_remedy(variable: str, value: str, said: str) -> None:
    message = error_of(None, **{variable: value})

    assert message.startswith(f"{variable}: ")
    assert said in message


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    message = error_of(written(tmp_path, "[serve]\nport = 0\nworkers = 0\n"), EVERGREEN_MODEL__SEED="-1")

    assert [line.split(":")[0] for line in message.splitlines()].count("EVERGREEN_MODEL__SEED") == 1
    assert len(message.splitlines()) == 3


def test_a_secret_is_neither_in_an_error_nor_in_the_settings_text() -> None:
    secret = "two words"
    assert secret not in error_of(EVERGREEN_SECURITY__TOKEN=secret)

    settings = load(
        environ={"EVERGREEN_SECURITY__TOKEN": "hidden-1", "EVERGREEN_STORE__URL": "postgresql://u:hidden-2@h/d"}
    )

    assert "hidden" not in repr(settings) and "hidden" not in str(settings)


def test_settings_are_frozen() -> None:
    settings = Settings(home=Path("/srv"))

    with pytest.raises(ValidationError):
        settings.serve.port = 1  # type: ignore[misc]
    assert all(model.model_config.get("frozen") for model in SECTIONS.values())
    assert all(model.model_config.get("extra") == "forbid" for model in SECTIONS.values())


# Paths


def test_relative_paths_of_the_file_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    written(
        project,
        '[data]\nsource = "../data/rows.csv"\ntarget = "y"\ntrusted_holdout = "ours.csv"\n[store]\nvar = "state"\n',
    )
    monkeypatch.chdir(tmp_path)

    settings = load(Path("project/evergreen.toml"), {})

    assert settings.data.source == str(tmp_path / "data/rows.csv")
    assert settings.data.trusted_holdout == str(project / "ours.csv")
    assert settings.for_children()["EVERGREEN_DATA__TRUSTED_HOLDOUT"] == settings.data.trusted_holdout
    assert settings.home == project
    assert settings.var == project / "state"


def test_relative_paths_of_the_environment_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"EVERGREEN_HOME": "here", "EVERGREEN_STORE__VAR": "state", "BENTOML_HOME": "bento"}

    settings = load(environ=environ)

    assert (settings.home, settings.var) == (tmp_path / "here", tmp_path / "state")
    assert settings.models_dir == tmp_path / "bento/models"


def test_a_child_in_another_directory_loads_the_same_settings_from_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    written(tmp_path / "etc", "[serve]\nport = 4000\n")
    monkeypatch.chdir(tmp_path)
    environ = {
        "EVERGREEN_HOME": "home",
        "EVERGREEN_CONFIG": "etc/evergreen.toml",
        "EVERGREEN_DATA__SOURCE": "rows.csv",
        "EVERGREEN_DATA__TARGET": "y",
        "EVERGREEN_STORE__URL": "sqlite:///rows.db",
        "EVERGREEN_STORE__VAR": "state",
    }
    here = load(environ=environ)

    monkeypatch.chdir("/")
    there = load(environ=environ | here.for_children())

    # The folder of the model store is a default here and said aloud there.
    assert there == here.model_copy(update={"bentoml_home": here.bentoml_folder})
    assert there.store_url == here.store_url == f"sqlite:///{tmp_path}/home/rows.db"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "http://127.0.0.1:3000"),
        ("::1", "http://[::1]:3000"),
        ("::", "http://[::1]:3000"),
        ("box", "http://box:3000"),
    ],
)
def test_the_address_is_one_that_can_be_called(host: str, address: str) -> None:
    assert load(environ={"EVERGREEN_SERVE__HOST": host}).address == address


@pytest.mark.parametrize(
    ("mark", "row"), [("0", 0), ("7", 7), ("2000", 1000), ("20%", 200), ("12.5%", 125), ("100%", 1000), ("0%", 0)]
)
def test_a_row_mark_is_a_count_or_a_share(mark: str, row: int) -> None:
    assert row_at(mark, 1000) == row


@pytest.mark.parametrize("mark", ["-1", "x", "101%", "nan%", "1.5", "%", "", "inf%"])
def test_anything_else_is_no_row_mark(mark: str) -> None:
    with pytest.raises(ValueError, match="expected rows"):
        row_at(mark, 1000)


def test_the_training_reads_its_own_part_of_its_section() -> None:
    training = load(environ={"EVERGREEN_TRAINING__TRIALS": "3", "EVERGREEN_TRAINING__THREADS": "2"}).training

    assert training.policy == TrainPolicy(trials=3)
    assert training.threads == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('pipeline = "mypkg.models"', r"\[training\] pipeline: .*names no function: write `mypkg\.module:function`"),
        ('backend = "dask"', r'backend "dask" needs `scheduler_address`, such as tcp://host:8786'),
        ("trials = 5\ntune_seconds = 60\ntimeout_s = 60", r"`tune_seconds` 60 leaves no time .* `timeout_s` 60: lower"),
        ('families = ["svm"]', r"\[training\] families: expected 'boosting', 'forest', 'extra_trees' or 'linear'"),
        ("families = []", r"\[training\] families: .*at least 1 item"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused_at_the_start(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(written(tmp_path, f"[training]\n{text}"), {})


# The table


def test_every_setting_has_a_default_that_can_be_written_and_says_its_unit_and_why(tmp_path: Path) -> None:
    lines: list[str] = []
    for row in table():
        section, _, key = row.key.partition(".")
        lines += [f"[{section}]"] if f"[{section}]" not in lines else []
        lines += [f"{key} = {row.default}"] if row.default else []
        assert len(row.description) > 20, f"{row.key} does not say its unit and why"

    assert load(written(tmp_path, "\n".join(lines)), {}) == Settings(
        home=tmp_path, config_file=tmp_path / "evergreen.toml"
    )


def test_every_setting_has_a_variable_that_sets_it() -> None:
    for row in table():
        section, _, key = row.key.partition(".")
        field = SECTIONS[section].model_fields[key]
        default = field.get_default(call_default_factory=True)
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            loaded: BaseModel = getattr(load(environ={row.variable: str(default)}), section)
            assert getattr(loaded, key) == default


# The token


def test_a_token_is_made_once_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    first, second = management_token(settings), management_token(settings)

    assert (first.new, second.new, first.value) == (True, False, second.value)
    assert len(first.value) >= 40
    assert stat.S_IMODE(settings.token_file.stat().st_mode) == 0o600
    assert known_token(settings) == first.value


def test_a_token_of_the_settings_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_SECURITY__TOKEN": "given"})

    assert management_token(settings) == ManagementToken("given", new=False)
    assert not settings.token_file.exists()


def test_asking_for_the_known_token_makes_none(tmp_path: Path) -> None:
    assert known_token(Settings(home=tmp_path)) == ""
    assert not (tmp_path / "var").exists()


def test_processes_that_ask_at_once_get_one_token(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        tokens = list(pool.map(management_token, [settings] * 16))

    assert len({token.value for token in tokens}) == 1
    assert sum(token.new for token in tokens) == 1


def test_a_token_that_cannot_be_kept_is_said_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")

    with pytest.raises(SettingsError, match=r"cannot read the management token in .*set \[security\] token"):
        management_token(Settings(home=tmp_path))


def test_importing_the_settings_imports_nothing_heavy() -> None:
    heavy = {
        "pandas",
        "sklearn",
        "skops",
        "evidently",
        "optuna",
        "apscheduler",
        "plotly",
        "scipy",
        "onnxruntime",
        "bentoml",
    }
    program = f"import sys, service.configuration; print(*(set(sys.modules) & {heavy!r}))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_every_section_and_key_that_a_message_names_exists() -> None:
    """`[section] key` in a text of the code is one of the settings, or the section's name and a word of prose."""
    texts = set()
    for package in ("service", "training", "monitoring"):
        for file in (Path(__file__).parents[2] / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = {found for text in texts for found in re.findall(r"(?<!\w)\[([a-z]{3,})\] ([a-z_]+)", text)}
    known = {tuple(row.key.split(".")) for row in table()}

    assert ("store", "var") in named
    assert {section for section, _ in named} <= set(SECTIONS)
    assert {key for section, key in named if (section, key) not in known} <= {"hashes", "keeps", "if"}
