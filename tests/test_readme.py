"""The README's tables are the code's; `python -m tests.test_readme` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from monitoring.metrics import Metrics
from service.command.cli import EXIT_CODES, app
from service.settings_table import table

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    rows = [f"| `{row.key}` | `{row.default}` | {row.description.replace('|', chr(92) + '|')} |" for row in table()]
    return "\n".join(["| setting | default | unit; why |", "|---|---|---|", *rows])


def metrics_table(folder: Path) -> str:
    metrics = Metrics(folder, "readme-1")
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


def between(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found, f"README.md has no <!-- {name} -->"
    return found[1]


def test_the_settings_table_is_the_code_s() -> None:
    assert between(README.read_text(), "settings") == settings_table(), "run `python -m tests.test_readme`"


def test_the_metrics_table_is_the_code_s(tmp_path: Path) -> None:
    assert between(README.read_text(), "metrics") == metrics_table(tmp_path), "run `python -m tests.test_readme`"


def test_every_command_the_readme_shows_exists() -> None:
    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}

    assert set(re.findall(r"\bevergreen ([a-z]+)\b(?=[ `\n])", "\n".join(_shown()))) <= known


def test_the_exit_codes_are_the_command_s() -> None:
    plain = README.read_text().replace("`", "")

    codes = [line.split(maxsplit=1) for line in EXIT_CODES.splitlines() if line[:1].isdigit()]
    assert len(codes) == 7
    assert [code for code, words in codes if f"| {code} | {words} |" not in plain] == []


def test_every_make_target_the_readme_shows_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()

    shown = re.findall(r"\$ make (\w+)", README.read_text())
    assert {"demo", "run"} <= set(shown)
    for target in shown:
        assert f"\n{target}:" in makefile


def _shown() -> list[str]:
    return [line for line in README.read_text().splitlines() if line.startswith("$ evergreen ")]


if __name__ == "__main__":
    import tempfile

    text = README.read_text()
    for name, table in (("settings", settings_table()), ("metrics", metrics_table(Path(tempfile.mkdtemp())))):
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- /{name} -->",
            lambda _, name=name, table=table: f"<!-- {name} -->\n{table}\n<!-- /{name} -->",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    README.write_text(text)
