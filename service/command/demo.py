"""`evergreen demo`: shows the whole loop on the sample stream, and ends by itself.

A service is started as a user would start it; sample traffic with an abrupt drift goes in over HTTP, labels follow
seconds later; the timeline is read from the service's own management API. The exit code is 0 only if everything that
should have happened did, and no request failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from monitoring.errors import EvergreenError
from service import sample
from service.command.client import Client, ServiceError, Unreachable
from service.command.traffic import Answered, TrafficSummary, replay_traffic
from service.configuration import load
from service.keys import known_token
from service.place import free_port
from service.process import INSTALL_ROOT
from training.manifest import GateResult, record_of

RATE: Final = 150.0
"""Rows a second: enough for a window of labels every few seconds, little enough to leave two cores to the training."""
CALM_S: Final = 20.0
LABEL_DELAY_S: Final = 2.0
LIMIT_S: Final = 165.0
WORKERS: Final = 2
WINDOW_ROWS: Final = 750

SETTINGS: Final = {
    "SERVE__WORKERS": str(WORKERS),
    "SCHEDULE__CHECK_INTERVAL_S": "3",
    "DRIFT__WINDOW_ROWS": str(WINDOW_ROWS),
    "QUALITY__WINDOW_ROWS": str(WINDOW_ROWS),
    "RETRAIN__GROWTH": "1",
    "RETRAIN__GROWTH_IF_LOST": "0.2",
    "RETRAIN__COOLDOWN_S": "8",
    "RETRAIN__MIN_LABELLED_ROWS": "900",
    "RETRAIN__MIN_NEW_LABELLED_ROWS": "900",
    "TRAINING__TRIALS": "1",
}
"""What differs from the defaults: a check every 3 s instead of a minute; trained when quality is lost, not before."""


@dataclass
class Story:
    """What happened, when (seconds since traffic began)."""

    began: float = field(default_factory=time.monotonic)
    events: list[tuple[float, str]] = field(default_factory=list)
    drift_at: float | None = None
    trained_at: float | None = None
    served_at: float | None = None
    recovered_at: float | None = None
    version: int = 1
    refused: int = 0
    told: set[int] = field(default_factory=set)

    def now(self) -> float:
        return time.monotonic() - self.began


def run(*, keep: bool = False, seed: int = 0, console: Console | None = None) -> int:
    """Show the loop; 0 when drift was noticed, a better version served by all workers, quality back, nothing failed."""
    console = console or Console()
    home = Path(tempfile.mkdtemp(prefix="evergreen-demo-"))
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN_")}
    env |= {"EVERGREEN_HOME": str(home), "EVERGREEN_SERVE__PORT": str(port)}
    env |= {f"EVERGREEN_{name}": value for name, value in SETTINGS.items()}
    url = f"http://127.0.0.1:{port}"
    console.print(f"[bold]Evergreen demo[/]: a service on {url}, {WORKERS} workers, its home {home}")
    log = (home / "server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "service.command.cli", "serve"],
        cwd=INSTALL_ROOT,
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    ended_well = False
    try:
        settings = load(environ=env)
        _wait_ready(url, server, home, console)
        with Client(url, known_token(settings)) as client:
            ended_well = _show(client, url, seed, console)
        if keep and ended_well:
            console.print(f"still serving: {url} (metrics: {url}/metrics), Ctrl-C stops")
            console.print(f"management token: kept in {settings.token_file}")
            _wait_for_interrupt(server)
        return 0 if ended_well else 1
    except (ServiceError, DemoFailed) as error:
        console.print(f"[red]{error}[/]")
        return 1
    except KeyboardInterrupt:
        return 1
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()
        if ended_well:
            shutil.rmtree(home, ignore_errors=True)
        else:
            console.print(f"the server's log: {home / 'server.log'}")


class DemoFailed(EvergreenError, RuntimeError):
    """Raised when the service does not start; the message says where its log is."""


def _show(client: Client, url: str, seed: int, console: Console) -> bool:
    drift_row = sample.TRAINING_ROWS + int(RATE * CALM_S)
    frame = sample.frame(
        int(RATE * LIMIT_S), start=sample.TRAINING_ROWS, seed=seed, scenario="abrupt", at_row=drift_row
    )
    story = Story()
    stop = threading.Event()
    answers: list[Answered] = []
    result: list[TrafficSummary | Exception] = []

    def send() -> None:
        try:
            result.append(
                replay_traffic(
                    url,
                    frame,
                    target=sample.TARGET,
                    rate=RATE,
                    label_delay_s=LABEL_DELAY_S,
                    on_answer=answers.append,
                    stop=stop,
                )
            )
        except Exception as error:  # shown by the main thread
            result.append(error)

    traffic = threading.Thread(target=send, name="traffic")
    say = _teller(story, console)
    say(f"version 1 serves; {RATE:.0f} rows/s of sample traffic begin, labels follow {LABEL_DELAY_S:.0f} s later")
    traffic.start()
    try:
        told_drift = False
        seen = {run["id"] for run in client.runs(limit=100)}
        while traffic.is_alive() and story.now() < LIMIT_S and story.recovered_at is None:
            if not told_drift and story.now() >= CALM_S:
                told_drift = True
                say("[yellow]the world changes[/]: incomes, debts and what makes a borrower default move at once")
            _follow(client, story, seen, say)
            _recovery(answers, story, say)
            time.sleep(0.5)
        calm_after = time.monotonic() + 5.0  # a last look at the new version in service
        while traffic.is_alive() and story.recovered_at is not None and time.monotonic() < calm_after:
            time.sleep(0.5)
    finally:
        stop.set()
        traffic.join(timeout=30)
    if not result or isinstance(result[0], Exception):
        console.print(f"[red]the traffic ended with {result[0] if result else 'no word'}[/]")
        return False
    return _summary(client, result[0], answers, story, console)


def _teller(story: Story, console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        story.events.append((story.now(), text))
        console.print(f"[dim]{story.now():6.1f} s[/]  {text}", highlight=False)

    return say


def _follow(client: Client, story: Story, seen: set[int], say: Callable[[str], None]) -> None:
    """Print what the service decided since the last call."""
    drift = client.drift(limit=1)
    if drift and story.drift_at is None and story.now() > CALM_S:
        report = drift[0].get("drift") or {}
        if report.get("detected"):
            story.drift_at = story.now()
            moved = [f["name"] for f in report["features"] if f["drifted"]]
            say(f"[yellow]drift noticed[/]: {', '.join(moved)}")
    for run in reversed(client.runs(limit=20)):
        if run["id"] in seen or run["outcome"] == "no_action":
            continue
        if run["state"] == "running":
            if run["id"] not in story.told:
                story.told.add(run["id"])
                say(f"run {run['id']}: [cyan]retraining[/], trigger {run['trigger']}: {run['why'][:110]}")
            continue
        seen.add(run["id"])
        for gate in _gates(run):
            mark = "[green]✓[/]" if gate.passed else "[red]✗[/]"
            say(f"run {run['id']}: gate {mark} {gate.name}: {gate.reason}")
        if run["outcome"] == "promoted":
            story.trained_at = story.now()
            story.version = run["version"]
            say(f"run {run['id']}: [green]version {run['version']} promoted[/]")
        else:
            story.refused += 1
            say(f"run {run['id']}: {run['outcome']}; version {story.version} stays in service")
    if story.version > 1 and story.served_at is None:
        workers = client.status()["workers"]
        if len(workers) == WORKERS and all(w["serving"] == story.version for w in workers):
            story.served_at = story.now()
            say(f"[green]both workers serve version {story.version}[/]")


def _gates(run: dict[str, Any]) -> tuple[GateResult, ...]:
    verdict = record_of(run["record"]).verdict
    return verdict.gates if verdict else ()


def _recovery(answers: list[Answered], story: Story, say: Callable[[str], None]) -> None:
    if story.served_at is None or story.recovered_at is not None:
        return
    before, during, after = _phases(list(answers), story)
    if after is None or before is None or during is None or after[1] < 600:
        return
    if after[0] > during[0] + (before[0] - during[0]) / 2:
        story.recovered_at = story.now()
        say(f"[green]quality recovered[/]: AUC {after[0]:.3f} (before {before[0]:.3f}, in the drift {during[0]:.3f})")


Phase = tuple[float, int] | None


def _phases(answers: list[Answered], story: Story) -> tuple[Phase, Phase, Phase]:
    """(AUC, rows) from the answers and the true labels: before the drift, during it, with the new version."""
    calm_rows = int(RATE * CALM_S)
    before = [a for a in answers if a.first_row < calm_rows]
    during = [a for a in answers if a.first_row >= calm_rows and a.version == 1]
    after = [a for a in answers if a.version == story.version and story.version > 1]
    return _auc(before), _auc(during), _auc(after)


def _auc(answers: list[Answered]) -> Phase:
    from sklearn.metrics import roc_auc_score

    truth = [label for answer in answers for label in answer.labels]
    scores = [p[1] for answer in answers for p in answer.probabilities or []]
    if len(set(truth)) < 2:
        return None
    return float(roc_auc_score(truth, scores)), len(truth)


def _summary(client: Client, traffic: TrafficSummary, answers: list[Answered], story: Story, console: Console) -> bool:
    status = client.status()
    workers = status["workers"]
    before, during, after = _phases(answers, story)
    on_new = [w["slot"] for w in workers if w["serving"] == story.version]
    checks = [
        ("drift noticed", story.drift_at is not None, _at(story.drift_at)),
        ("candidate promoted", story.trained_at is not None, f"version {story.version} at {_at(story.trained_at)}"),
        (
            "served by all workers",
            story.version > 1 and len(on_new) == WORKERS,
            f"version {story.version} on {', '.join(on_new) or 'none'}",
        ),
        ("quality before the drift", before is not None, _quality(before)),
        ("quality in the drift, version 1", during is not None, _quality(during)),
        (f"quality after, version {story.version}", story.recovered_at is not None, _quality(after)),
        ("requests failed", traffic.ok, f"{traffic.rows_failed} of {traffic.rows_sent + traffic.rows_failed} rows"),
        ("labels sent", traffic.labels_failed == 0, f"{traffic.labels_sent}, {traffic.labels_failed} failed"),
    ]
    table = Table("", "what", "result", title="what happened", show_header=False)
    for what, good, result in checks:
        table.add_row("[green]✓[/]" if good else "[red]✗[/]", what, result)
    console.print(table)
    console.print(
        f"rows by version: {', '.join(f'{v}: {n}' for v, n in traffic.versions.items())}; "
        f"p50 {traffic.p50_ms:.1f} ms, p99 {traffic.p99_ms:.1f} ms; {story.now():.0f} s in all",
        highlight=False,
    )
    return all(good for _, good, _ in checks)


def _quality(phase: Phase) -> str:
    return "not measured" if phase is None else f"AUC {phase[0]:.3f} over {phase[1]} rows"


def _at(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def _wait_ready(url: str, server: subprocess.Popen[bytes], home: Path, console: Console) -> None:
    with console.status("starting the service and training version 1 …"), Client(url) as client:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise DemoFailed(f"the service ended with exit code {server.returncode}: see {home / 'server.log'}")
            with contextlib.suppress(Unreachable):
                if client.readiness() == "":
                    return
            time.sleep(0.3)
    raise DemoFailed(f"the service was not ready after 90 s: see {home / 'server.log'}")


def _wait_for_interrupt(server: subprocess.Popen[bytes]) -> None:
    try:
        server.wait()
    except KeyboardInterrupt:
        return
