"""What `evergreen serve` refuses, and what environment its processes get."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from service import place
from service.command import serve
from service.configuration import load
from service.process import INSTALL_ROOT, SUPERVISOR, Tree, forget_trees
from service.serving.pages import PAGES, page
from service.settings import SettingsError


@pytest.mark.parametrize("form", ["training/__init__.py", "monitoring.py"])
def test_a_directory_with_a_package_of_the_same_name_is_refused_with_the_remedy(tmp_path: Path, form: str) -> None:
    stranger = tmp_path / form
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN_")}

    done = subprocess.run(
        [Path(sys.executable).parent / "evergreen", "serve"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 1
    assert f"{stranger} would shadow evergreen's own package" in done.stderr
    assert f"cd / && EVERGREEN_HOME={tmp_path} evergreen serve" in done.stderr
    assert not (tmp_path / "var").exists()


def test_a_folder_of_data_with_such_a_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "rows.parquet").touch()

    place.check_packages(tmp_path)


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = load(environ={"EVERGREEN_HOME": str(tmp_path), "EVERGREEN_SERVE__PORT": str(port)})

        with pytest.raises(place.ServeError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve.run(settings)


def test_the_processes_find_no_container_mode_absolute_paths_and_one_thread(tmp_path: Path) -> None:
    settings = load(environ={"EVERGREEN_HOME": str(tmp_path)})
    base = {"BENTOML_CONTAINERIZED": "true", "BENTOCLOUD_DEPLOYMENT_URL": "http://x", "PATH": "/bin"}

    env = serve.environment(settings, tmp_path / "run", "serve", base)

    assert "BENTOML_CONTAINERIZED" not in env
    assert "BENTOCLOUD_DEPLOYMENT_URL" not in env
    assert env["EVERGREEN_HOME"] == str(tmp_path)
    assert env["BENTOML_HOME"] == str(tmp_path / "var" / "bentoml")
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["BENTOML_DO_NOT_TRACK"] == "True"
    assert env["PATH"] == "/bin"


def test_a_built_bento_wants_an_absolute_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from service import process

    inside = tmp_path / "bentos" / "evergreen" / "abc" / "src" / "service" / "process.py"
    monkeypatch.setattr(process, "__file__", str(inside))
    monkeypatch.setenv("EVERGREEN_HOME", "relative")

    with pytest.raises(SettingsError, match="absolute folder outside the bento"):
        Tree.of(load(environ={"EVERGREEN_HOME": str(tmp_path)}), supervisor=1)

    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    assert Tree.of(load(environ={"EVERGREEN_HOME": str(tmp_path)}), supervisor=1).role == "serve"


def test_the_folders_of_servers_that_were_killed_are_forgotten_and_no_others(tmp_path: Path) -> None:
    for name, supervisor in (("aa", "4194305"), ("bb", str(os.getpid())), ("cc", None), ("bentoml-4194305", None)):
        (tmp_path / name).mkdir()
        if supervisor:
            (tmp_path / name / SUPERVISOR).write_text(supervisor)
    (tmp_path / "dd").mkdir()  # killed before it could say who it was, hours ago
    os.utime(tmp_path / "dd", (0, 0))

    forget_trees(tmp_path)
    forget_trees(tmp_path / "nothing here")

    assert {path.name for path in tmp_path.iterdir()} == {"bb", "cc"}


def test_plain_bentoml_serve_listens_where_the_settings_say_which_is_this_machine(tmp_path: Path) -> None:
    program = (
        "import service.app; service.app.PredictionService.inject_config(); "
        "from bentoml._internal.configuration.containers import BentoMLContainer as c; "
        "print(c.http.host.get(), c.http.port.get())"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "BENTOML_"))}
    environ["EVERGREEN_HOME"] = str(tmp_path)

    for given, expected in (({}, "127.0.0.1 3000"), ({"EVERGREEN_SERVE__HOST": "0.0.0.0"}, "0.0.0.0 3000")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=INSTALL_ROOT,
            env={**environ, **given},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == expected


def test_the_pages_are_in_the_wheel_and_in_the_bento() -> None:
    project = tomllib.loads((INSTALL_ROOT / "pyproject.toml").read_text())
    bento = (INSTALL_ROOT / "bentofile.yaml").read_text()

    assert {"web/*", "web/static/*"} <= set(project["tool"]["setuptools"]["package-data"]["service"])
    assert all(f'"service/{files}"' in bento for files in ("web/*", "web/static/*"))
    assert all(page(path)[1] for path in PAGES), "BentoML still brings Swagger UI's files"
