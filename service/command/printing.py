"""What the command prints: tables and lines for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from training.manifest import record_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from service.command.doctor import Finding
    from service.command.init import InitReport
    from service.command.traffic import Progress, TrafficSummary
    from service.keys import Token


LEAST_SHOWN: Final = 0.01
"""Weight of an expert that is worth a word."""


def open_console(*, stderr: bool = False) -> Console:
    """A console that leaves words as they are: no markup, no colouring of numbers, no wrapping of sentences."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # a pipe has no width of its own
    return Console(stderr=stderr, width=width, markup=False, highlight=False, soft_wrap=True)


def new_table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *values: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text("" if value is None else str(value)) for value in values))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _when(seconds: Any) -> str:
    """Local time; empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(float(seconds)).strftime("%Y-%m-%d %H:%M:%S")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value or "")


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values or ())


def quality_text(found: Any) -> str:
    """`auc 0.8312 (1,000 rows)` of a measured quality, whatever else stands beside it."""
    if not isinstance(found, dict):
        return ""
    value = found.get("value", found.get("challenger"))  # of a check, or of a version's own holdout
    if "metric" in found and value is not None:
        rows = f" ({found['rows']:,} rows)" if isinstance(found.get("rows"), int) else ""
        return f"{found['metric']} {_number(value)}{rows}"
    return ", ".join(f"{name} {_number(value)}" for name, value in found.items() if isinstance(value, (int, float)))


def print_status(found: Mapping[str, Any]) -> None:
    """`GET /manage/status` for people."""
    console = open_console()
    champion = found.get("champion")
    head = f"{found.get('model')}: " + (f"version {champion}" if champion is not None else "no version in service yet")
    details = [
        found.get("engine") and f"by {found['engine']}",
        found.get("adaptation") is not None and f"adaptation {found['adaptation']}",
        found.get("previous") is not None and f"previous {found['previous']}",
        found.get("announced") is not None and f"announced {found['announced']}",
    ]
    console.print(", ".join([head, *(str(each) for each in details if each)]))
    workers = new_table("replica", "worker", "serving", "ready", "failed")
    for worker in found.get("workers", ()):
        failed = "; ".join(f"{version}: {why}" for version, why in (worker.get("failed") or {}).items())
        add_row(
            workers,
            worker.get("replica"),
            worker.get("slot"),
            worker.get("serving"),
            _listed(worker.get("ready")),
            failed,
        )
    console.print(workers)
    for doubt in found.get("doubts") or ():
        console.print(f"the gates doubt this version: {doubt}")
    for slot, why in (found.get("unadapted") or {}).items():
        console.print(f"{slot} does not have the adaptation in force: {why}")
    waiting, lag = found.get("spool_bytes"), found.get("drain_lag_s")
    if waiting is not None:
        console.print(f"record: {waiting:,} bytes wait for the store, the oldest for {lag or 0:.1f} s")
    for line in _check_lines(found.get("last_check")):
        console.print(line)
    if found.get("runs"):
        console.print(_runs_table(found["runs"]))


def print_models(found: Mapping[str, Any]) -> None:
    """`GET /manage/models` for people."""
    aliases = {found[alias]: alias for alias in ("previous", "announced", "champion") if found.get(alias) is not None}
    shown = new_table("version", "alias", "origin", "created", "estimator", "engine", "quality on its holdout")
    for model in found["models"]:
        add_row(
            shown,
            model["version"],
            aliases.get(model["version"], ""),
            model.get("origin"),
            _when(model.get("created_at")),
            model.get("estimator"),
            model.get("engine"),
            quality_text(model.get("quality")),
        )
    open_console().print(shown)


def print_runs(found: Iterable[Mapping[str, Any]]) -> None:
    """`GET /manage/runs` for people."""
    open_console().print(_runs_table(found))


def print_drift(checks: Sequence[Mapping[str, Any]]) -> None:
    """The newest of `GET /manage/drift` for people."""
    console = open_console()
    if not checks:
        console.print("no check yet; they come every [schedule] check_interval_s seconds")
        return
    for line in _check_lines(checks[0]):
        console.print(line)
    features = (checks[0].get("drift") or {}).get("features") or ()
    if features:
        shown = new_table("feature", "test", "score", "threshold", "drifted", "note")
        for each in features:
            drifted = "yes" if each.get("drifted") else ""
            score, threshold = _number(each.get("score")), _number(each.get("threshold"))
            add_row(shown, each.get("name"), each.get("test"), score, threshold, drifted, each.get("note"))
        console.print(shown)


def print_adaptation(found: Mapping[str, Any]) -> None:
    """`GET /manage/adaptation` for people."""
    console = open_console()
    version, number = found.get("version"), found.get("in_force")
    switched = "" if found.get("enabled", True) else "; switched off (`evergreen adaptation on`)"
    if version is None:
        console.print(f"no version in service yet{switched}")
        return
    served = "its own output" if number is None else f"adaptation {number}"
    console.print(f"version {version} answers with {served}{switched}")
    shown = new_table("number", "at", "what", "who", "why", "weights")
    for each in found.get("adaptations", ()):
        weights = (each.get("weights") or {}).items()
        heaviest = sorted(weights, key=lambda one: -one[1])
        told = _listed(f"{name} {weight:.0%}" for name, weight in heaviest if weight >= LEAST_SHOWN)
        add_row(shown, each["number"], _when(each.get("at")), each.get("kind"), each.get("who"), each.get("why"), told)
    if found.get("adaptations"):
        console.print(shown)


def print_findings(found: Iterable[Finding]) -> None:
    """What `evergreen doctor` found."""
    shown = new_table("", "check", "found")
    for each in found:
        add_row(shown, "ok" if each.ok else "NO", each.check, each.found)
    open_console().print(shown)


def print_tokens(found: Iterable[Token]) -> None:
    """What `evergreen token list` knows."""
    shown = new_table("token", "may", "made")
    for each in found:
        add_row(shown, each.name, ", ".join(each.scopes), _when(each.created_at))
    open_console().print(shown)


def print_init(done: InitReport, target: str) -> None:
    """What `evergreen init` wrote and noticed."""
    console = open_console()
    kinds = list(done.kinds.values())
    console.print(f"wrote {done.path}")
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    console.print(f'{done.rows:,} rows, predicting "{target}" ({done.task}) from {counts}')
    for warning in done.warnings:
        console.print(f"look at this: {warning}", style="yellow")
    console.print("next: evergreen train && evergreen serve")


def _check_lines(check: Mapping[str, Any] | None) -> list[str]:
    if not check:
        return []
    lines = [f"last check: {_when(check.get('at'))}, of version {check.get('version')}"]
    moved = check.get("drift") or {}
    if moved.get("skipped"):
        lines.append(f"  drift: not computed, {moved['skipped']}")
    elif moved:
        names = [each.get("name") for each in moved.get("features", ()) if each.get("drifted")]
        which = f" ({_listed(names)})" if names else ""
        lines.append(
            f"  drift: {'yes' if moved.get('detected') else 'no'}, {moved.get('share') or 0:.0%} of the features{which}"
        )
    quality = check.get("quality") or {}
    measured = quality_text(quality)
    held = f"{quality['state']}; newest rows served: " if measured and quality.get("state") else ""
    lines.append(f"  quality: {held}{measured or 'not measured yet'}")
    if labels := quality.get("labels"):
        how = f"measured from {labels['labels']:,} labels" if labels.get("measured") else "not measured"
        share = labels.get("coverage")
        of_them = "none yet" if share is None else f"{share:.0%} of the older ones have a label"
        lines.append(f"  labels: rows wait {labels['delay_s']:,.0f} s ({how}), {labels['waiting']:,} do; {of_them}")
    decision = check.get("decision") or {}
    lines.append(f"  decision: {'train' if decision.get('train') else 'no training'}")
    lines += [f"    {reason}" for reason in decision.get("reasons", ())]
    return lines


def _runs_table(found: Iterable[Mapping[str, Any]]) -> Table:
    shown = new_table("run", "created", "kind", "trigger", "who", "state", "outcome", "version", "took", "why")
    for run in found:
        took = ""
        if run.get("started_at"):
            took = f"{(run.get('finished_at') or time.time()) - run['started_at']:.0f} s"
        middle = (run.get("state"), run.get("outcome"), run.get("version"))
        add_row(
            shown,
            run["id"],
            _when(run.get("created_at")),
            run.get("kind"),
            run.get("trigger"),
            run.get("who"),
            *middle,
            took,
            run.get("why"),
        )
    return shown


def print_run(run: Mapping[str, Any]) -> None:
    console = open_console()
    outcome = f", {run['outcome']}" if run.get("outcome") else ""
    version = f", version {run['version']}" if run.get("version") is not None else ""
    console.print(f"run {run['id']}: {run.get('kind')}, {run.get('state')}{outcome}{version}")
    asked = f"  {run.get('trigger')}, by {run.get('who')}: {run.get('why') or 'no reason given'}"
    console.print(asked)
    times = [f"{word} {_when(run[key])}" for word, key in _TIMES if run.get(key) is not None]
    console.print("  " + ", ".join(times))
    for line in _story(run.get("record") or {}):
        console.print(f"  {line}")


def _story(record: Mapping[str, Any]) -> Iterator[str]:
    """The record of a run in words, a line for each fact; what has no words of its own is shown as JSON."""
    told = {"payload", "quality", "version", "check", "decision", "data", "job", "verdict", "rollout", "error"}
    known = record_of(record)
    if known.decision is not None:
        yield from (f"because {reason}" for reason in known.decision.reasons)
    if (data := known.data) is not None:
        yield f"data: {data.rows:,} rows, {data.record_rows:,} of them recorded, snapshot {data.snapshot[:12]}"
    if known.job is not None:
        yield f"job: {known.job.seconds:.1f} s"
        yield from (f"note: {note}" for note in known.job.notes)
    if known.verdict is not None:
        yield from (f"{'✓' if gate.passed else '✗'} {gate.name}: {gate.reason}" for gate in known.verdict.gates)
    if known.rollout is not None:
        yield f"rollout: {known.rollout.reason}, after {known.rollout.waited_s:.1f} s"
    if known.error:
        yield f"✗ {known.error}"
    for name, value in record.items():
        if name not in told:
            yield f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


_TIMES: Final = (("created", "created_at"), ("started", "started_at"), ("finished", "finished_at"))


class TrafficBars:
    """A progress bar on stderr while rows and labels are sent; nothing when stderr is not a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Callable[[Progress], None] | None:
        if self.quiet:
            return None
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}"),
        )
        self.bars = bars.Progress(*columns, console=open_console(stderr=True))
        self.bars.start()
        rows = self.bars.add_task("rows", total=None, note="")
        labels = self.bars.add_task("labels", total=None, note="")

        return lambda now: self._show(rows, labels, now)

    def _show(self, rows: Any, labels: Any, now: Progress) -> None:
        failed = f"{now.rows_failed:,} failed, " if now.rows_failed else ""
        versions = _listed(f"v{version}: {count:,}" for version, count in now.versions.items())
        self.bars.update(rows, total=now.rows, completed=now.rows_sent + now.rows_failed, note=failed + versions)
        waits = f"{now.labels_waiting:,} wait, the last for {now.wait_s:.0f} s" if now.labels_waiting else ""
        gone = now.labels_sent + now.labels_failed
        self.bars.update(labels, total=gone + now.labels_waiting or None, completed=gone, note=waits)

    def __exit__(self, *_: object) -> None:
        if not self.quiet:
            self.bars.stop()


def print_summary(summary: TrafficSummary, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_dict())
        return
    rate = summary.rows_sent / summary.sending_s if summary.sending_s else 0.0
    versions = _listed(f"{version} ({rows:,} rows)" for version, rows in summary.versions.items())
    lines = [
        ("rows sent", f"{summary.rows_sent:,} of {summary.rows:,}"),
        ("rows failed", f"{summary.rows_failed:,}"),
        ("labels sent", f"{summary.labels_sent:,}"),
        ("labels failed", f"{summary.labels_failed:,}"),
        ("versions seen", versions or "none"),
        ("latency", f"p50 {summary.p50_ms:.1f} ms, p99 {summary.p99_ms:.1f} ms a request"),
        ("took", f"{summary.duration_s:.1f} s, {rate:,.0f} rows/s"),
    ]
    if (overall := summary.quality()) and overall.value is not None:
        parts = [(f"version {version}", summary.quality(version)) for version in summary.versions]
        each = _listed(f"{name} {part.value:.3f}" for name, part in parts if part and part.value is not None)
        lines.append(("quality", f"{overall.metric} {overall.value:.3f} of {overall.rows:,} labelled rows ({each})"))
    if summary.retries:
        lines.insert(4, ("connections retried", f"{summary.retries:,}"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    for reason, count in summary.reasons.items():
        print(f"failed {count:,} times: {reason}", file=sys.stderr)
