"""What the command prints: lines for people, JSON for machines."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from monitoring.wording import metric_name, percent
from service.command.layout import named, paragraph, table, terminal_width
from service.serving.management.sentence import duration, moment
from training.manifest import NO_ACTION, record_of

if TYPE_CHECKING:
    from rich.console import Console

    from service.command.doctor import Finding
    from service.command.init import InitReport
    from service.command.traffic import Progress, TrafficSummary
    from service.keys import Token
    from training.manifest import TriedWindow


CLOCK_S: Final = 5.0
"""A clock that differs by more from the database's is worth a word."""
LEAST_SHOWN: Final = 0.01
"""Weight of an expert that is worth a word."""


def open_console(*, stderr: bool = False) -> Console:
    """A console that leaves words as they are: no markup, no colouring of numbers, no wrapping of sentences."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # a pipe has no width of its own
    height = None
    if sys.stdout.isatty() and os.environ.get("TERM") in ("dumb", "unknown"):  # rich takes each of them for 80 x 25
        width, height = shutil.get_terminal_size()
    return Console(stderr=stderr, width=width, height=height, markup=False, highlight=False, soft_wrap=True)


def show(lines: Iterable[str]) -> None:
    """Print lines that `layout` has made."""
    for line in lines:
        print(line)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _when(seconds: Any) -> str:
    """Local time; empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(float(seconds)).strftime("%Y-%m-%d %H:%M:%S")


def _short(seconds: Any) -> str:
    """Local time to the minute, without what is the same today; empty for None."""
    return "" if seconds is None else moment(float(seconds), time.time(), named=False)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value or "")


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values or ())


def quality_text(found: Any) -> str:
    """`AUC 0.8312 (1,000 rows)` of a measured quality, "" where it has no value."""
    if not isinstance(found, dict):
        return ""
    value = found.get("value", found.get("challenger"))  # of a check, or of a version's own holdout
    if value is None:
        return ""
    rows = f" ({found['rows']:,} rows)" if isinstance(found.get("rows"), int) else ""
    return f"{metric_name(str(found.get('metric')))} {_number(value)}{rows}"


def print_status(found: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """`GET /manage/status` for people, and the newest `lines` of the folded runs."""
    width = terminal_width()
    show(paragraph(found.get("sentence", ""), width))
    parts = [(f"{found.get('model')}", _serving(found))]
    doubts = (f"the gates doubt this version: {doubt}" for doubt in found.get("doubts") or ())
    needs = [*(found.get("alerts") or ()), *doubts]
    parts += [("look", each) for each in needs if len(needs) > 1]  # the sentence has said a single one
    waiting, lag = found.get("spool_bytes"), found.get("drain_lag_s")
    if waiting is not None:
        parts.append(("record", f"{waiting:,} bytes wait for the store, the oldest for {lag or 0:.1f} s"))
    show(["", *named([*parts, *_check_parts(found.get("last_check"))], width), ""])
    rows = [
        (
            worker.get("replica"),
            worker.get("slot"),
            worker.get("serving"),
            _listed(worker.get("ready")),
            _failed(worker),
        )
        for worker in found.get("workers", ())
    ]
    show([*table(("replica", "worker", "serving", "ready", "failed"), rows, width), ""])
    if len(found.get("replicas", ())) > 1:
        print_replicas(found["replicas"])
        show([""])
    print_runs(lines)


def print_replicas(found: Iterable[Mapping[str, Any]]) -> None:
    """`GET /manage/replicas` for people: a line for each home."""
    rows = [
        (
            one["host"],
            one["home"],
            "-" if one["serving"] is None else one["serving"],
            f"{one['spool_bytes']:,} B, {one['lag_s']:.1f} s" if one["spool_bytes"] else "all stored",
            _presence(one),
        )
        for one in found
    ]
    show(table(("host", "home", "serves", "spool", "state"), rows, terminal_width(), sentences=True))


def _presence(home: Mapping[str, Any]) -> str:
    """Whether a home's replica answers, and what else is to be known of it."""
    if home["away"]:
        return f"away: last seen {duration(home['seen_s'])} ago"
    said = [
        "leads" if home["leads"] else "",
        "this one" if home["here"] else "",
        f"not ready: {home['why_not_ready']}" if home["why_not_ready"] else "ready",
        f"clock {home['ahead_s']:+.0f} s" if abs(home["ahead_s"]) > CLOCK_S else "",
    ]
    return ", ".join(each for each in said if each)


def _serving(found: Mapping[str, Any]) -> str:
    champion = found.get("champion")
    details = [
        f"version {champion}" if champion is not None else "no version in service yet",
        found.get("engine") and f"by {found['engine']}",
        found.get("adaptation") is not None and f"adaptation {found['adaptation']}",
        found.get("previous") is not None and f"previous {found['previous']}",
        found.get("announced") is not None and f"announced {found['announced']}",
    ]
    return ", ".join(str(each) for each in details if each)


def _failed(worker: Mapping[str, Any]) -> str:
    return "; ".join(f"{version}: {why}" for version, why in (worker.get("failed") or {}).items())


def print_models(found: Mapping[str, Any]) -> None:
    """`GET /manage/models` for people: a line for each version."""
    width = terminal_width()
    aliases = {found[alias]: alias for alias in ("previous", "announced", "champion") if found.get(alias) is not None}
    at = _when if width is None else _short
    rows = [
        (
            model["version"],
            aliases.get(model["version"], ""),
            at(model.get("created_at")),
            model.get("origin"),
            quality_text(model.get("quality")),
            ", ".join(model.get("tags") or ()),
            ", ".join(each for each in (model.get("estimator"), model.get("engine")) if each),
        )
        for model in found["models"]
    ]
    show(table(("version", "alias", "created", "origin", "on its holdout", "tags", "estimator"), rows, width))


RUN_COLUMNS: Final = ("run", "checks", "since", "created", "kind", "trigger", "who", "state", "outcome", "version")


def print_runs(found: Iterable[Mapping[str, Any]]) -> None:
    """`GET /manage/runs?folded=true` for people: a line each, as a sentence in a terminal, as columns into a pipe."""
    width = terminal_width()
    if width is not None:
        show(
            table(("run", "when", "what"), [(r["id"], _short(r.get("created_at")), _happened(r)) for r in found], width)
        )
        return
    rows = [
        (
            run["id"],
            run.get("count", 1) if _said_no(run) else "",
            _when(run.get("first_at", run.get("created_at"))),
            _when(run.get("created_at")),
            *(run.get(name) for name in RUN_COLUMNS[4:]),
            "" if (took := _took(run)) is None else f"{took:.1f}",
            _why(run),
        )
        for run in found
    ]
    show(table((*RUN_COLUMNS, "took_s", "why"), rows, None))


def _said_no(run: Mapping[str, Any]) -> bool:
    return run.get("kind") == "check" and run.get("outcome") == NO_ACTION and run.get("state") == "done"


def _happened(run: Mapping[str, Any]) -> str:
    """One run, or checks in a row, as a sentence."""
    if _said_no(run):
        count, at, asked = run.get("count", 1), run["created_at"], run.get("trigger")
        span = ""
        if count > 1:
            span = f"{count} checks, {moment(run['first_at'], at, named=False)} to {moment(at, at, named=False)}"
        yet = "" if asked == "schedule" else f" yet, wanted by {asked}"
        return f"{span or 'check'}: no training{yet} ({_gist(run)})"
    manual = run.get("trigger") == "manual"
    asked = f" by {run.get('who')}" if manual else "" if run.get("trigger") == "schedule" else f", {run.get('trigger')}"
    took = _took(run)
    ended = [
        str(run.get("outcome") or run.get("state")),
        f"version {run['version']}" if run.get("version") is not None else "",
        "" if took is None else f"{'for' if run.get('finished_at') is None else 'in'} {took:.0f} s",
    ]
    why = f" ({found})" if (found := _why(run)) else ""
    return f"{run.get('kind')}{asked}: {', '.join(each for each in ended if each)}{why}"


def _gist(run: Mapping[str, Any]) -> str:
    """Why a check said "no", without what is the same at every check; `runs N` has it whole."""
    decision = (run.get("record") or {}).get("decision") or {}
    reasons, ahead = decision.get("reasons") or [str(run.get("why"))], decision.get("ahead") or {}
    said = [reasons[0].partition(":")[0]] if len(reasons) > 1 else []
    if ahead.get("rows_due") is not None:
        said.append(f"{ahead['new_rows']:,} of {ahead['rows_due']:,} labelled rows")
    if not said or decision.get("trigger") or not reasons[-1].startswith("no drift"):
        said.append(reasons[-1])
    return "; ".join(said)


def _took(run: Mapping[str, Any]) -> float | None:
    """Seconds that a run took, or takes by now; None before its start and for what was over at once."""
    began, ended = run.get("started_at"), run.get("finished_at")
    if began is None or began == ended:
        return None
    return float((time.time() if ended is None else ended) - began)


def _why(run: Mapping[str, Any]) -> str:
    """What stood against the run, else what spoke for it."""
    known = record_of(run.get("record") or {})
    if known.error:
        return known.error
    if known.verdict is not None and run.get("outcome") in ("kept", "refused"):
        return "; ".join(f"{gate.name}: {gate.reason}" for gate in known.verdict.gates if not gate.passed)
    return str(run.get("why") or "")


def print_drift(checks: Sequence[Mapping[str, Any]]) -> None:
    """The newest of `GET /manage/drift` for people."""
    width = terminal_width()
    if not checks:
        show(["no check yet; they come every [schedule] check_interval_s seconds"])
        return
    show(named(_check_parts(checks[0]), width))
    moved = checks[0].get("drift") or {}
    known = {finding["name"]: finding["state"] for finding in moved.get("findings") or ()}
    measured = [*(moved.get("features") or ()), *([moved["prediction"]] if moved.get("prediction") else ())]
    rows = [
        (
            each.get("name"),
            _number(each.get("score")),
            _number(each.get("threshold")),
            "yes" if each.get("drifted") else "",
            known.get(each.get("name"), ""),
            each.get("test"),
            each.get("note"),
        )
        for each in measured
    ]
    if rows:
        show(["", *table(("feature", "score", "needed", "drifted", "told", "test", "note"), rows, width)])


def print_adaptation(found: Mapping[str, Any]) -> None:
    """`GET /manage/adaptation` for people."""
    width = terminal_width()
    version, number = found.get("version"), found.get("in_force")
    switched = "" if found.get("enabled", True) else "; switched off (`evergreen adaptation on`)"
    if version is None:
        show([f"no version in service yet{switched}"])
        return
    served = "its own output" if number is None else f"adaptation {number}"
    show([f"version {version} answers with {served}{switched}"])
    at, rows = _when if width is None else _short, []
    for each in found.get("adaptations", ()):
        heaviest = sorted((each.get("weights") or {}).items(), key=lambda one: -one[1])
        told = _listed(f"{name} {percent(weight)}" for name, weight in heaviest if weight >= LEAST_SHOWN)
        rows.append((each["number"], at(each.get("at")), each.get("kind"), told, each.get("who"), each.get("why")))
    if rows:
        show(["", *table(("number", "at", "what", "weights", "who", "why"), rows, width)])


def print_findings(found: Iterable[Finding]) -> None:
    """What `evergreen doctor` found."""
    parts = [(f"{'ok' if each.ok else 'NO'}  {each.check}", each.found) for each in found]
    show(named(parts, terminal_width()))


def print_tokens(found: Iterable[Token]) -> None:
    """What `evergreen token list` knows."""
    rows = [(each.name, ", ".join(each.scopes), _when(each.created_at)) for each in found]
    show(table(("token", "may", "made"), rows, terminal_width()))


def print_keys(found: Iterable[Mapping[str, Any]]) -> None:
    """What `evergreen keys list` knows."""
    rows = [(one["key"], one["mark"], one["wrapped_by"] or "not in the store") for one in found]
    show(table(("key", "mark", "wrapped by"), rows, terminal_width()))


def print_init(done: InitReport, target: str) -> None:
    """What `evergreen init` wrote and decided."""
    kinds = list(done.kinds.values())
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    width = terminal_width()
    lines = [f"wrote {done.path}", f'{done.rows:,} rows, predicting "{target}" ({done.task}) from {counts}']
    for count, what in ((done.without_label, "label"), (done.without_time, "time")):
        if count:
            lines.append(f"{count:,} rows without a {what} are left out")
    cells = [(each.name, each.kind, each.use, each.line, each.why) for each in done.columns]
    lines += table(("column", "kind", "use", "line", "why"), cells, width, sentences=True)
    if any(each.use == "left out" for each in done.columns):
        lines.append(f"to bring a column back take its line out of {done.path}")
    for warning in done.warnings:
        lines += paragraph(warning, width, first="look at this: ")
    show([*lines, "next: evergreen train && evergreen serve"])


def _check_parts(check: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A check in named lines."""
    if not check:
        return []
    parts = [("last check", f"{_when(check.get('at'))}, of version {check.get('version')}")]
    moved = check.get("drift") or {}
    if moved.get("skipped"):
        parts.append(("drift", f"not computed, {moved['skipped']}"))
    elif moved:
        names = [each.get("name") for each in moved.get("features", ()) if each.get("drifted")]
        which = f" ({_listed(names)})" if names else ""
        detected = "yes" if moved.get("detected") else "no"
        parts.append(("drift", f"{detected}, {percent(moved.get('share') or 0.0)} of the features{which}"))
    quality = check.get("quality") or {}
    measured = quality_text(quality)
    held = f"{quality['state']}; newest rows served: " if measured and quality.get("state") else ""
    parts.append(("quality", f"{held}{measured or 'not measured yet'}"))
    if labels := quality.get("labels"):
        how = f"measured from {labels['labels']:,} labels" if labels.get("measured") else "not measured"
        share = labels.get("coverage")
        of_them = "none yet" if share is None else f"{percent(share)} of the older ones have a label"
        parts.append(("labels", f"rows wait {labels['delay_s']:,.0f} s ({how}), {labels['waiting']:,} do; {of_them}"))
    decision = check.get("decision") or {}
    parts.append(("decision", "train" if decision.get("train") else "no training"))
    return [*parts, *(("because", reason) for reason in decision.get("reasons", ()))]


def print_run(run: Mapping[str, Any]) -> None:
    """`GET /manage/runs/N` for people: the whole story."""
    width = terminal_width()
    outcome = f", {run['outcome']}" if run.get("outcome") else ""
    version = f", version {run['version']}" if run.get("version") is not None else ""
    moments = {key: run[key] for _, key in _TIMES if run.get(key) is not None}
    at_once = len(moments) == len(_TIMES) and len(set(moments.values())) == 1
    times = [f"{word} {_when(moments[key])}" for word, key in _TIMES if key in moments]
    times = [_when(run["created_at"])] if at_once else times
    took = "" if (seconds := _took(run)) is None else f" ({seconds:.1f} s)"
    parts = [
        ("asked", f"{run.get('trigger')}, by {run.get('who')}: {_asked(run)}"),
        ("times", f"{', '.join(times)}{took}"),
        *_story(run.get("record") or {}),
    ]
    show([f"run {run['id']}: {run.get('kind')}, {run.get('state')}{outcome}{version}", *named(parts, width)])


def _asked(run: Mapping[str, Any]) -> str:
    """Why a run was asked for, as far as its decision does not say it."""
    why = run.get("why") or "no reason given"
    decision = record_of(run.get("record") or {}).decision
    return "as follows" if decision is not None and why == "; ".join(decision.reasons) else why


def _story(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The record of a run in words, a line for each fact; what has no words of its own is shown as JSON."""
    told = {
        "payload",
        "waits_for",
        "quality",
        "version",
        "decision",
        "data",
        "job",
        "verdict",
        "rollout",
        "error",
        "data_checks",
    }
    known = record_of(record)
    if known.waits_for:
        yield "waits for", ", ".join(known.waits_for)
    if known.decision is not None:
        yield from (("because", reason) for reason in known.decision.reasons)
    if (data := known.data) is not None:
        yield "data", f"{data.rows:,} rows, {data.record_rows:,} of them recorded, snapshot {data.snapshot[:12]}"
    if known.job is not None:
        yield "job", f"{known.job.seconds:.1f} s"
        yield from (("learnt from", _window(window)) for window in known.job.windows)
        yield from (("note", note) for note in known.job.notes)
    if known.verdict is not None:
        yield from (
            ("gates", f"{'✓' if gate.passed else '✗'} {gate.name}: {gate.reason}") for gate in known.verdict.gates
        )
    if known.rollout is not None:
        yield "rollout", f"{known.rollout.reason}, after {known.rollout.waited_s:.1f} s"
    if known.error:
        yield "error", f"✗ {known.error}"
    for name, value in record.items():
        if name not in told and value not in (0, None, "", [], {}):
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _window(window: TriedWindow) -> str:
    """A window of rows that a training tried."""
    better = "" if window.sigmas is None else f", {window.sigmas:+.1f} standard errors better than all rows"
    return f"{window.name}, {window.rows:,} rows{better}{': chosen' if window.chosen else ''}"


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
        lines.append(
            ("quality", f"{metric_name(overall.metric)} {overall.value:.3f} of {overall.rows:,} labelled rows ({each})")
        )
    if summary.retries:
        lines.insert(4, ("connections retried", f"{summary.retries:,}"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    for reason, count in summary.reasons.items():
        print(f"failed {count:,} times: {reason}", file=sys.stderr)
