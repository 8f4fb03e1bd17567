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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from evergreen_client import Client, EvergreenClientError, Unreachable
from rich.console import Console
from rich.table import Table

from monitoring.errors import EvergreenError
from monitoring.wording import percent
from service import sample
from service.command.traffic import Answered, TrafficSummary, replay_traffic
from service.configuration import load
from service.keys import known_token
from service.place import free_port
from service.process import INSTALL_ROOT
from training.adaptation import IDENTITY
from training.manifest import GateResult, record_of

RATE: Final = 150.0
"""Rows a second: enough for a window of labels every few seconds, little enough to leave two cores to the training."""
CALM_S: Final = 20.0
LABEL_DELAY_S: Final = 2.0
LIMIT_S: Final = 165.0
WORKERS: Final = 2
WINDOW_ROWS: Final = 750
ADAPTED: Final = 0.5
"""Version 1 counts as adapted once its own output has lost this much of the weight that it had in calm traffic."""
RECOVERED_ROWS: Final = 600
Say = Callable[[str], None]

SETTINGS: Final = {
    "SERVE__WORKERS": str(WORKERS),
    "SCHEDULE__CHECK_INTERVAL_S": "3",
    "DRIFT__WINDOW_ROWS": str(WINDOW_ROWS),
    "QUALITY__WINDOW_ROWS": str(WINDOW_ROWS),
    "RETRAIN__COOLDOWN_S": "8",
    "RETRAIN__GROWTH": "1.4",
    "RETRAIN__GROWTH_IF_LOST": "1.4",
    "TRAINING__TRIALS": "1",
}
"""What differs from the defaults: a check every 3 s, not every minute; a training some 20 s after the world changed."""


@dataclass
class Story:
    """What happened, when (seconds since traffic began; None: not yet)."""

    began: float = field(default_factory=time.monotonic)
    told_at: float | None = None
    adapted_at: float | None = None
    trained_at: float | None = None
    served_at: float | None = None
    recovered_at: float | None = None
    adaptation: int = 0  # the number from which on the answers of version 1 are adapted to the changed world
    calm_weight: float = 1.0  # of version 1's own output before the world changed
    version: int = 1
    paid: dict[str, Any] | None = None  # the record of an adaptation by which labels said that adapting version 1 pays
    shown: set[tuple[int, int]] = field(default_factory=set)  # adaptations that were told: version, number
    running: set[int] = field(default_factory=set)  # runs whose beginning was told

    def now(self) -> float:
        return time.monotonic() - self.began


def run(*, keep: bool = False, seed: int = 0, console: Console | None = None) -> int:
    """Show the loop; 0 when all of it happened, from the drift told to quality recovered, and no request failed."""
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
    except (EvergreenClientError, DemoFailed) as error:
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

    def say(text: str) -> None:
        console.print(f"[dim]{story.now():6.1f} s[/]  {text}", highlight=False)

    traffic = threading.Thread(target=send, name="traffic")
    say(f"version 1 serves; {RATE:.0f} rows/s of sample traffic begin, labels follow {LABEL_DELAY_S:.0f} s later")
    traffic.start()
    try:
        changed = False
        seen = {run["id"] for run in client.runs(limit=100)}
        while traffic.is_alive() and story.now() < LIMIT_S and story.recovered_at is None:
            if not changed and story.now() >= CALM_S:
                changed = True
                say("[yellow]the world changes[/]: incomes, debts and what makes a borrower default move at once")
            _follow_drift(client, story, say)
            _follow_runs(client, story, seen, say)
            _follow_adaptations(client, story, answers, say)
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


def _follow_drift(client: Client, story: Story, say: Say) -> None:
    """Tell what the first check that sees the change says of it."""
    if story.told_at is not None or story.now() <= CALM_S:
        return
    for check in client.drift(limit=1):
        begun = [f["sentence"] for f in (check["drift"] or {}).get("findings", ()) if f["state"] == "began"]
        if begun:
            story.told_at = story.now()
            say("[yellow]drift told[/]: " + "; ".join(begun))


def _follow_adaptations(client: Client, story: Story, answers: list[Answered], say: Say) -> None:
    """Tell which adaptations came into force since the last call, and what they have been worth."""
    found = client.adaptation(limit=20)
    for event in reversed(found["adaptations"]):
        if (event["version"], event["number"]) in story.shown:
            continue
        story.shown.add((event["version"], event["number"]))
        record = event["record"]
        if event["kind"] != "made":
            say(f"adaptation {event['number']} of version {event['version']}: {event['kind']}: {event['why']}")
            continue
        say(told(event))
        if event["version"] != 1:
            continue
        own = event["weights"][IDENTITY]
        if story.now() <= CALM_S:
            story.calm_weight = own
            continue
        if story.adaptation and record["served_loss"] is not None and record["served_loss"] < record["raw_loss"]:
            story.paid = record
        if not story.adaptation and own <= ADAPTED * story.calm_weight:
            story.adaptation = event["number"]
    if story.adaptation and story.adapted_at is None and any(_is_adapted(a, story) for a in answers[-WORKERS * 10 :]):
        story.adapted_at = story.now()
        say(f"[green]adapted[/]: requests are answered with adaptation {story.adaptation}")


def _is_adapted(answer: Answered, story: Story) -> bool:
    return answer.version == 1 and story.adaptation > 0 and (answer.adaptation or 0) >= story.adaptation


def told(event: dict[str, Any]) -> str:
    """An adaptation of `GET /manage/adaptation` that was made, in plain sentences."""
    record, weights = event["record"], event["weights"] or {}
    heaviest = sorted(((weight, name) for name, weight in weights.items() if name != IDENTITY), reverse=True)[:3]
    parts = [
        f"{percent(weights.get(IDENTITY, 0.0))} the model's own output",
        *(f"{percent(w)} {name}" for w, name in heaviest),
    ]
    text = f"adaptation {event['number']} of version {event['version']} answers: {', '.join(parts)}, the rest others."
    if record.get("raw_loss") is not None and record.get("served_loss") is not None:
        text += (
            f" On {record['compared']:,} rows answered while adapted the loss was {record['served_loss']:.3f} served,"
            f" {record['raw_loss']:.3f} raw."
        )
    return text


def _follow_runs(client: Client, story: Story, seen: set[int], say: Say) -> None:
    """Tell which trainings began and ended since the last call, and when both workers serve the new version."""
    for run in reversed(client.runs(limit=20)):
        if run["id"] in seen or run["outcome"] == "no_action":
            continue
        if run["state"] == "running":
            if run["id"] not in story.running:
                story.running.add(run["id"])
                say(f"run {run['id']}: [cyan]training[/], because of {run['trigger']}: {run['why']}")
            continue
        seen.add(run["id"])
        for gate in _gates(client.run(run["id"])):
            mark = "[green]✓[/]" if gate.passed else "[red]✗[/]"
            say(f"run {run['id']}: gate {mark} {gate.name}: {gate.reason}")
        if run["outcome"] == "promoted":
            story.trained_at, story.served_at = story.now(), None
            story.version = run["version"]
            say(f"run {run['id']}: [green]version {run['version']} trained and promoted[/]")
        else:
            say(f"run {run['id']}: {run['outcome']}; version {story.version} stays in service")
    if story.version > 1 and story.served_at is None:
        workers = client.status()["workers"]
        if len(workers) == WORKERS and all(w["serving"] == story.version for w in workers):
            story.served_at = story.now()
            say(f"[green]swapped[/]: both workers serve version {story.version}")


def _gates(run: Mapping[str, Any]) -> tuple[GateResult, ...]:
    verdict = record_of(run["record"]).verdict
    return verdict.gates if verdict else ()


def _recovery(answers: list[Answered], story: Story, say: Say) -> None:
    if story.served_at is None or story.recovered_at is not None:
        return
    before, during, _, after = _phases(list(answers), story)
    if after is None or before is None or during is None or after.rows < RECOVERED_ROWS:
        return
    if after.auc > during.auc + (before.auc - during.auc) / 2:
        story.recovered_at = story.now()
        say(f"[green]recovered[/]: AUC {after.auc:.3f} (before the change {before.auc:.3f}, after it {during.auc:.3f})")


class Phase(NamedTuple):
    """How good the answers of one phase were, by the true labels."""

    auc: float
    loss: float
    """Log loss a row, in nats."""
    rows: int

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f}, loss {self.loss:.3f} over {self.rows:,} rows"


Phases = tuple[Phase | None, Phase | None, Phase | None, Phase | None]


def _phases(answers: list[Answered], story: Story) -> Phases:
    """Before the change; after it; with version 1 adapted to it; with the version that was trained on it."""
    calm_rows = int(RATE * CALM_S)
    before = [a for a in answers if a.first_row < calm_rows]
    later = [a for a in answers if a.first_row >= calm_rows]
    adapted = [a for a in later if _is_adapted(a, story)]
    during = [a for a in later if a.version == 1 and not _is_adapted(a, story)]
    after = [a for a in later if a.version == story.version and story.version > 1]
    return _measured(before), _measured(during), _measured(adapted), _measured(after)


def _measured(answers: list[Answered]) -> Phase | None:
    from sklearn.metrics import log_loss, roc_auc_score

    truth = [label for answer in answers for label in answer.labels]
    scores = [p[1] for answer in answers for p in answer.probabilities or []]
    if len(set(truth)) < 2:
        return None
    return Phase(float(roc_auc_score(truth, scores)), float(log_loss(truth, scores)), len(truth))


def what_happened(
    story: Story, answers: list[Answered], traffic: TrafficSummary, on_new: list[str]
) -> list[tuple[str, bool, str]]:
    """What should have happened, whether it did, and how; `on_new` are the workers that serve the new version."""
    before, during, adapted, after = _phases(answers, story)
    paid = story.paid
    return [
        ("drift told", story.told_at is not None, _at(story.told_at)),
        ("adapted", story.adapted_at is not None, f"{_at(story.adapted_at)}: adaptation {story.adaptation} in force"),
        (
            "adapting paid",
            paid is not None,
            "not measured"
            if paid is None
            else f"loss {paid['served_loss']:.3f} served, {paid['raw_loss']:.3f} raw on {paid['compared']:,} rows",
        ),
        ("trained", story.trained_at is not None, f"{_at(story.trained_at)}: version {story.version} promoted"),
        (
            "swapped",
            story.served_at is not None and len(on_new) == WORKERS,
            f"{_at(story.served_at)}: version {story.version} on {', '.join(on_new) or 'none'}",
        ),
        ("recovered", story.recovered_at is not None, _at(story.recovered_at)),
        ("answers before the change", before is not None, _said(before)),
        ("after it, not adapted yet", during is not None, _said(during)),
        ("after it, version 1 adapted", adapted is not None, _said(adapted)),
        (f"after it, version {story.version}", after is not None, _said(after)),
        ("requests failed", traffic.ok, f"{traffic.rows_failed} of {traffic.rows_sent + traffic.rows_failed:,} rows"),
        ("labels failed", traffic.labels_failed == 0, f"{traffic.labels_failed} of {traffic.labels_sent:,}"),
    ]


def _summary(client: Client, traffic: TrafficSummary, answers: list[Answered], story: Story, console: Console) -> bool:
    on_new = [worker["slot"] for worker in client.status()["workers"] if worker["serving"] == story.version]
    checks = what_happened(story, answers, traffic, on_new)
    table = Table("", "what", "result", title="what happened", show_header=False)
    for what, good, text in checks:
        table.add_row("[green]✓[/]" if good else "[red]✗[/]", what, text)
    console.print(table)
    console.print(
        f"The world changed at {CALM_S:.0f} s. "
        f"Rows by version: {', '.join(f'{v}: {n:,}' for v, n in traffic.versions.items())}; "
        f"p50 {traffic.p50_ms:.1f} ms, p99 {traffic.p99_ms:.1f} ms; {story.now():.0f} s of traffic in all",
        highlight=False,
    )
    return all(good for _, good, _ in checks)


def _said(phase: Phase | None) -> str:
    return "not measured" if phase is None else str(phase)


def _at(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s, {seconds - CALM_S:.1f} s after the change"


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
