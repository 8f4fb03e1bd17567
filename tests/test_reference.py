"""The reference pages are the code's; `python -m tests.test_reference` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from monitoring.metrics import Metrics
from monitoring.store import open_store
from service.command.cli import EXIT_CODES, app
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving import openapi
from service.serving.described import ANY
from service.serving.management.application import application
from service.serving.worker import Worker
from service.settings import SECTIONS, SettingsError
from service.settings_table import table
from tests.artefacts import make_artefact

ROOT: Final = Path(__file__).parent.parent
REFERENCE: Final = ROOT / "docs" / "reference"


def settings_table(_: Path) -> str:
    """A table for each section."""
    parts = []
    for section in SECTIONS:
        rows = [row for row in table() if row.key.partition(".")[0] == section]
        lines = [f"| `{row.key}` | `{row.default}` | {_cell(row.description)} |" for row in rows]
        parts.append("\n".join([f"## {section}", "", "| setting | default | unit; why |", "|---|---|---|", *lines]))
    return "\n\n".join(parts)


def metrics_table(folder: Path) -> str:
    metrics = Metrics(folder, "reference-1")
    rows = []
    for collector in vars(metrics).values():
        if not hasattr(collector, "_documentation"):
            continue
        suffix = "_total" if collector._type == "counter" else ""
        labels = f"{{{','.join(collector._labelnames)}}}" if collector._labelnames else ""
        rows.append(f"| `{collector._name}{suffix}{labels}` | {collector._type} | {collector._documentation} |")
    metrics.close()
    served = "| `evergreen_model_info{model,version,engine,worker}` | gauge | The version each worker answers with |"
    built = "| `evergreen_build_info{version,python,bentoml,sklearn}` | gauge | What this server is made of; always 1 |"
    return "\n".join(["| metric | type | what |", "|---|---|---|", built, served, *rows])


def http_tables(folder: Path) -> str:
    """The operations of both OpenAPI documents of a server, with the statuses that each may answer."""
    with _worker(folder) as worker:
        documents = (
            ("Predictions, labels, health", openapi.document(worker)),
            ("Management", application(worker).openapi()),
        )
    parts = []
    for heading, document in documents:
        lines = [f"### {heading}", "", "| route | what | scope | answers |", "|---|---|---|---|"]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if method == "parameters":
                    continue
                scope = operation["tags"][0] if heading == "Management" else ""
                statuses = " ".join(sorted(operation["responses"].keys() - ANY))
                summary = _cell(operation["summary"])
                lines.append(f"| `{method.upper()} {path}` | {summary} | {scope} | {statuses} |")
        parts.append("\n".join(lines))
    return "\n\n".join([f"Besides what stands here every route may answer {' '.join(sorted(ANY))}.", *parts])


@contextmanager
def _worker(folder: Path) -> Iterator[Worker]:
    url = f"sqlite:///{folder}/evergreen.db"
    settings = load(environ={"EVERGREEN_HOME": str(folder), "EVERGREEN_STORE__URL": url})
    make_artefact(folder / "1")
    write_live(settings.live_file, Live(model="evergreen", champion=LiveVersion(1, str(folder / "1"))))
    open_store(url).dispose()  # makes the tables
    worker = Worker(settings, folder / "run", "api-1")
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


def command_pages(_: Path) -> str:
    """What `--help` says of each command."""
    root = typer.main.get_command(app)
    return "\n\n".join(_command(root, ("evergreen",), None))


def _command(command: Any, names: tuple[str, ...], parent: Any) -> Iterator[str]:
    context = command.context_class(
        command, info_name=names[-1], parent=parent, terminal_width=100, max_content_width=100
    )
    command.epilog = None  # the exit codes, which a page of their own has
    text = re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.MULTILINE).strip()
    yield f"## {' '.join(names)}\n\n```text\n{text}\n```"
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from _command(command.get_command(context, name), (*names, name), context)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


GONE: Final = {"quality.noise_sigmas", "gates.resamples", "training.holdout_share"}
"""Settings of 0.1.0 that are no more."""
PAGES: Final[dict[str, Callable[[Path], str]]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "http": http_tables,
    "command": command_pages,
}


def between(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found, f"docs/reference/{name}.md has no <!-- {name} -->"
    return found[1].strip("\n")


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_the_code_s(name: str, tmp_path: Path) -> None:
    text = (REFERENCE / f"{name}.md").read_text()

    assert between(text, name) == PAGES[name](tmp_path), "run `python -m tests.test_reference`"


def documents() -> Iterator[tuple[Path, str]]:
    """README and the pages that people write."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield page, page.read_text()


def test_every_command_the_documents_show_exists() -> None:
    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}

    shown = {
        (page.name, command)
        for page, text in documents()
        for command in re.findall(r"(?:^\$ |`)evergreen ([a-z]+)\b(?=[ `\n])", text, re.MULTILINE)
    }
    assert len(shown) > 50
    assert {(page, command) for page, command in shown if command not in known} == set()


def test_every_setting_the_documents_name_exists() -> None:
    known = {row.key for row in table()}
    sections = "|".join(SECTIONS)

    named = {
        (page.name, key)
        for page, text in documents()
        for key in re.findall(rf"`((?:{sections})\.[a-z_]+)\b(?!\.)[^`]*`", text)
    }
    others = {
        "training.job",
        "training._trees",
        "training._records",
        "monitoring.schema",
        "model.skops",
        "model.onnx",
    }  # modules, files
    others |= {"quality.raw", "data.search"}  # fields of a check and of a manifest
    assert len(named) > 50
    assert {(page, key) for page, key in named if key not in known | GONE | others} == set()


def test_what_the_notes_of_an_upgrade_call_gone_is_refused_by_its_name(tmp_path: Path) -> None:
    notes = (ROOT / "docs" / "operating.md").read_text().partition("**From 0.1.0 to 0.2.0**")[2]
    for key in sorted(GONE):
        assert f"`{key}`" in notes
        section, _, name = key.partition(".")
        file = tmp_path / f"{section}.toml"
        file.write_text(f"[{section}]\n{name} = 1\n")
        with pytest.raises(SettingsError, match=name):
            load(file, {})


def test_the_exit_codes_are_the_command_s() -> None:
    plain = (ROOT / "docs" / "loop.md").read_text().replace("`", "")

    codes = [line.split(maxsplit=1) for line in EXIT_CODES.splitlines() if line[:1].isdigit()]
    assert len(codes) == 7
    assert [code for code, words in codes if f"| {code} | {words} |" not in plain] == []


def test_every_make_target_the_documents_show_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    shown = {target for _, text in documents() for target in re.findall(r"(?:^\$ |`)make ([\w-]+)", text, re.MULTILINE)}
    assert {"demo", "run"} <= shown
    assert [target for target in sorted(shown) if f"\n{target}:" not in makefile] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_five_minutes_shows_the_script_that_is_run() -> None:
    page, script = ((ROOT / "docs" / f"five-minutes.{end}").read_text() for end in ("md", "sh"))

    assert f"```bash\n{script}```" in page


def main(folder: Path) -> None:
    for name, made in PAGES.items():
        page = REFERENCE / f"{name}.md"
        (folder / name).mkdir()
        written = f"<!-- {name} -->\n\n{made(folder / name)}\n\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, w=written: w, page.read_text(), flags=re.DOTALL)
        page.write_text(text)


def _write() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))


if __name__ == "__main__":
    _write()
