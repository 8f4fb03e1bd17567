"""`evergreen replay`: the file read, the policies read, the study made; a table, a JSON file, a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring.wording import metric_name
from service import sample
from service.command import printing as show
from service.configuration import load
from service.replay.stream import ReplayError, Stream, open_stream
from service.replay.study import PolicyResult, Study, replay
from service.settings import SAMPLE, Settings
from training.source import load_source

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from service.replay.scores import Scores
    from service.sample import Scenario

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a replay is asked for; empty texts are taken from the settings."""

    data: str
    target: str = ""
    time: str = ""
    label_time: str = ""
    """Column of the moment at which each label became known."""
    ignore: Sequence[str] = ()
    label_delay: str = AUTO
    """Rows, or auto: by `label_time` when it is given, else as many rows as lie between two checks."""
    every: int = 500
    start: float = 0.2
    max_rows: int = 60_000
    seed: int = 0
    scenario: Scenario = "none"
    """Of the sample."""
    shuffle: bool = False
    """Whether the rows come in random order: a world in which nothing changes."""


def run(asked: Asked, settings: Settings, policies: Sequence[Path] = (), *, quiet: bool = False) -> Study:
    """The study; a bar on stderr says how far it is. Without `policies` the settings are the one policy."""
    stream, delay = _stream(asked, settings)
    named = {path.stem: load(path, {}) for path in policies} or {"loop": settings}
    if len(named) < len(policies):
        raise ReplayError(f"two of the policies have one name ({', '.join(p.stem for p in policies)}): rename a file")
    with Bar(quiet) as on_step:
        return replay(
            stream, named, data=asked.data, label_delay=delay, every=asked.every, seed=asked.seed, on_step=on_step
        )


def _stream(asked: Asked, settings: Settings) -> tuple[Stream, str]:
    """The stream, and in words when its labels come."""
    frame, target, time, ignore = _read(asked, settings)
    if asked.label_time and asked.label_delay != AUTO:
        raise ReplayError(f"labels come by --label-time or --label-delay {asked.label_delay} rows: give one of the two")
    if not (asked.label_delay == AUTO or asked.label_delay.isdecimal()):
        raise ReplayError(f"--label-delay is a number of rows, or {AUTO}; got {asked.label_delay!r}")
    delay = asked.every if asked.label_delay == AUTO else int(asked.label_delay)
    task = None if settings.data.task == "auto" or target != settings.data.target else settings.data.task
    stream = open_stream(
        frame,
        target=target,
        time=time,
        ignore=ignore,
        task=task,
        start=asked.start,
        max_rows=asked.max_rows,
        delay_rows=delay,
        label_time=asked.label_time,
        shuffle=asked.seed if asked.shuffle or (settings.data.shuffle and not time) else None,
    )
    return stream, f"by the column {asked.label_time!r}" if asked.label_time else f"{delay:,} rows later"


def _read(asked: Asked, settings: Settings) -> tuple[pd.DataFrame, str, str, list[str]]:
    """The file's rows, and which columns are the target, the time and no features."""
    data = settings.data
    if asked.data == SAMPLE:
        start = min(int(asked.start * asked.max_rows / (1 - asked.start)), asked.max_rows)
        rows = start + asked.max_rows
        frame = sample.frame(rows, seed=asked.seed, scenario=asked.scenario, at_row=start + asked.max_rows // 2)
        return frame, sample.TARGET, asked.time or sample.TIME, [sample.LABEL_DELAY, sample.TIME, *asked.ignore]
    if asked.scenario != "none":
        raise ReplayError(f"only the sample has scenarios: replay {SAMPLE!r} instead of {asked.data!r}")
    same = data.source != SAMPLE and not asked.target
    target = asked.target or data.target
    if not target:
        raise ReplayError(f"which column of {asked.data} is to be predicted? Name it with --target")
    time, ignore = asked.time or (data.time if same else ""), asked.ignore or (data.ignore if same else ())
    columns = [name for name in (target, time, asked.label_time, *ignore) if name]
    frame = load_source(asked.data, columns=columns)
    private = [name for name in settings.privacy.names if same and name in frame.columns]
    return frame, target, time, [*ignore, *private]


def write_json(study: Study, path: Path) -> None:
    """The study as a JSON file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(study), indent=1) + b"\n")


def write_page(study: Study, path: Path) -> None:
    """The study as one HTML page."""
    from service.replay.page import page

    path.write_text(page(study), encoding="utf-8")


def print_study(study: Study) -> None:
    """The study as a table, and what the checks said."""
    console = show.open_console()
    console.print(
        f"{study.data}: {study.rows:,} rows after the first {study.start_rows:,}, predicting {study.target!r} "
        f"({study.task}); labels {study.label_delay}, a check every {study.every:,} rows"
    )
    table = _table(
        "", metric_name(study.metric), metric_name(study.loss), "calibration error", "trainings", "promoted", "seconds"
    )
    for policy in study.policies:
        _add(table, f"{policy.name}, served", *_cells(policy.served), *_counts(policy))
        _add(table, f"{policy.name}, raw output", *_cells(policy.raw))
    for each in study.schedules:
        _add(table, each.name, *_cells(each.scores), each.trainings, "", f"{each.seconds:.1f}")
    console.print(table)
    for policy in study.policies:
        for line in _told(policy):
            console.print(line)
    for note in study.notes:
        console.print(note)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *values: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text("" if value is None else str(value)) for value in values))


def _cells(scores: Scores) -> list[str]:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"

    return [cell(scores.metric), cell(scores.loss), cell(scores.calibration)]


def _counts(policy: PolicyResult) -> list[Any]:
    return [policy.trainings, policy.promoted, f"{policy.seconds:.1f}"]


def _told(policy: PolicyResult) -> list[str]:
    checks = sum(policy.checks.values())
    said = ", ".join(f"{verdict} {count}" for verdict, count in policy.checks.items())
    adapted = sum(turn.adaptation is not None for turn in policy.turns)
    failed = f", {policy.failed} failed" if policy.failed else ""
    return [
        f"{policy.name}: {checks} checks (quality {said}), drift news in {policy.drift_news}, "
        f"an adaptation in force after {adapted}",
        f"{policy.name}: {policy.trainings} trainings, {policy.promoted} promoted, {policy.refused} refused{failed}",
        f"{policy.name}: {policy.rows_a_minute:,.0f} rows a minute of one core, besides {policy.training_s:.1f} s of "
        "trainings",
    ]


class Bar:
    """A progress bar on stderr; nothing when that is no terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Any:
        if self.quiet:
            return lambda what, done, total, note: None
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}"),
        )
        self.bars = bars.Progress(*columns, console=show.open_console(stderr=True))
        self.bars.start()
        tasks: dict[str, Any] = {}

        def step(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks:
                tasks[what] = self.bars.add_task(what, total=total, note="")
            self.bars.update(tasks[what], completed=done, note=note)

        return step

    def __exit__(self, *_: object) -> None:
        if not self.quiet:
            self.bars.stop()
