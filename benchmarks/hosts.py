"""Three hosts in trouble: `python -m benchmarks.hosts [--minutes 10 --seed 0 --faults 44]`, on Linux as root.

Three replicas with homes of their own, one PostgreSQL and one S3 (moto's server), each in a network namespace of its
own (`tests/hosts.py`). Clients on every replica's host send rows and labels and remember each acknowledged one, people
ask for trainings, pushes and promotions, and a seeded schedule of faults goes on meanwhile. Exit code 1 when a line of
the end does not hold:

- **rows**: each acknowledged row and label is in the store exactly once. A host is wiped only when its server has ended
  and its spool is empty; what it had acknowledged is in the store by then (else it is started again as it is).
- **one hand**: by what PostgreSQL noted of every write (`benchmarks/witness.py`).
- **promotions**: each change of the champion is answered with on every replica within 5 s; on one that something was
  done to (below) within 10 s after that was over. A version that was replaced sooner is not judged.
- **answers**: no request fails on a host that can serve: its worker lives, is not stopped, and has answered before. A
  request may fail from the moment that its worker is killed or stopped, or its server ends, until the first good answer
  after that is over.
- **wiped**: a wiped host answers with the champion within 15 s of its start, and no first version is trained for it.

What is over when: a cut when it is mended, a stop at SIGCONT, a kill when the process is there again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import sqlalchemy as sa
from evergreen_client import Client, EvergreenClientError

from benchmarks import report
from benchmarks.soak import records
from benchmarks.witness import WORK, Fact, facts, flips, install, problems
from monitoring.store import open_store
from service import sample
from tests.hosts import Database, Network, NotPermitted, ObjectStore, Replica, family_of
from tests.real_server import ROOT, wait_until

NAMES: Final = ("one", "two", "three")
TOKEN: Final = "the-token-of-all-replicas"
BATCH: Final = 4
PAUSE_S: Final = 0.15
"""A client's pause between two requests: some 25 rows a second and replica."""
PATIENCE_S: Final = 10.0
"""A client's, with one request."""
SOON_S: Final = 5.0
BACK_S: Final = 10.0
WIPED_S: Final = 15.0
TICK_S: Final = 0.1
SETTLE_S: Final = 120.0
ASK_EVERY_S: Final = 12.0
STEP_COMES_S: Final = 60.0
"""How long a fault waits for the step that it is to hit."""

SETTINGS: Final = {
    "DATA__FIRST": "700",
    "TRAINING__TRIALS": "0",
    "TRAINING__NICE": "5",
    "RETRAIN__MIN_LABELLED_ROWS": "100",
    "GATES__MIN_HOLDOUT_ROWS": "20",
    "SECURITY__TOKEN": TOKEN,
}


COPIES: Final = """
import time
from monitoring.store import connect
from service.configuration import load
from service.control.deployment import registry
settings = load()
shared = registry(settings, connect(settings.store_url))
for _ in range(2):
    shared.register(shared.fetch(1), origin="push", now=time.time())
"""
"""Versions to promote besides the first: copies of it, put there as by another host."""


# -- what was seen ---------------------------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """One request of a client."""

    began: float
    ended: float
    version: int  # that answered, 0 when nobody did
    why: str = ""


@dataclass
class Trouble:
    """From when to when something stood against a replica, by our doing."""

    replica: str
    answers: bool  # its requests may fail
    began: float
    ended: float = float("inf")
    storage_only: bool = False  # it can follow to the versions that it has


@dataclass
class Seen:
    """What one client knows of its replica."""

    acknowledged: list[str] = field(default_factory=list)
    labelled: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)


def send(replica: Replica, seen: Seen, rows: list[dict[str, Any]], labels: list[int], done: threading.Event) -> None:
    """Send rows, every second time with their labels, until `done`. Runs in a thread of the replica's host."""
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=PATIENCE_S)
    turn = 0
    while not done.wait(PAUSE_S):
        turn += 1
        first = (turn * BATCH) % (len(rows) - BATCH)
        ids = [f"{replica.host.name}-{turn}-{i}" for i in range(BATCH)]
        body = json.dumps({"records": rows[first : first + BATCH], "ids": ids})
        given = [{"id": one, "label": labels[first + i]} for i, one in enumerate(ids)]
        began = time.time()
        try:
            status, answer = _post(connection, "/predict", body)
            if status != 200:
                seen.attempts.append(Attempt(began, time.time(), 0, f"{status}: {answer[:200]!r}"))
                continue
            seen.attempts.append(Attempt(began, time.time(), json.loads(answer)["version"]))
            seen.acknowledged += ids
            if turn % 2 == 0:
                began = time.time()
                status, answer = _post(connection, "/feedback", json.dumps({"labels": given}))
                if status == 202:
                    seen.labelled += ids
                else:
                    seen.attempts.append(Attempt(began, time.time(), 0, f"feedback {status}: {answer[:200]!r}"))
        except (OSError, http.client.HTTPException) as error:
            seen.attempts.append(Attempt(began, time.time(), 0, f"{type(error).__name__}: {error}"))
            connection.close()  # the next request opens it again
    connection.close()


def _post(connection: http.client.HTTPConnection, path: str, body: str) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


class Eye:
    """What the store says, looked at all the time from a host of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.champion = self.announced = self.leader = 0
        """Versions, and the process id of the controller that leads; 0 for none."""
        self.working: int | None = None
        """The run of `WORK` that is under way."""
        self.held = False
        """Whether a flip is held up."""
        self.versions: list[int] = []

    def look(self, done: threading.Event) -> None:
        while not done.is_set():
            engine = sa.create_engine(
                self._url,
                connect_args={"connect_timeout": 2, "tcp_user_timeout": 3000},
                isolation_level="AUTOCOMMIT",
                poolclass=sa.NullPool,
            )
            with contextlib.suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
                while not done.wait(TICK_S):
                    self._look(connection)
            done.wait(0.5)

    def _look(self, connection: sa.Connection) -> None:
        ask = connection.exec_driver_sql
        named = dict(ask("select alias, version from aliases").fetchall())
        self.champion, self.announced = named.get("champion", 0), named.get("announced", 0)
        holder = ask("select holder from leases where expires_at > extract(epoch from clock_timestamp())").scalar()
        self.leader = int(holder.rpartition(":")[2]) if holder else 0
        kinds = ", ".join(f"'{kind}'" for kind in WORK)
        self.working = ask(f"select id from runs where state = 'running' and kind in ({kinds})").scalar()
        self.versions = list(ask("select version from versions order by version").scalars())
        self.held = bool(ask("select 1 from pg_stat_activity where wait_event = 'PgSleep'").scalar())


# -- the schedule ----------------------------------------------------------------------------------------------------

KINDS: Final = (
    *("kill worker", "kill controller", "kill supervisor", "kill serve"),
    *("stop worker", "stop controller", "stop supervisor"),
    *("cut database", "cut storage", "cut both"),
    *("storage stopped", "storage cut off", "database killed", "database stopped"),
    *("wipe", "busy disk"),
    *("training: kill job", "training: stop job", "training: kill controller", "training: cut both"),
    *("announce: kill controller", "announce: stop controller", "announce: cut database"),
    *("flip: kill controller", "flip: stop controller", "flip: cut both"),
)
"""Before the colon: the step in which the leader is hit."""

SHORT: Final = (
    "wipe",
    "cut storage",
    "training: cut both",
    "database killed",
    "announce: kill controller",
    "kill worker",
)


@dataclass(frozen=True)
class Fault:
    """Something that is done at `at` seconds of the storm, for `lasts_s`."""

    at: float
    kind: str
    replica: str
    lasts_s: float


def schedule(
    chance: random.Random, count: int, seconds: float, kinds: tuple[str, ...], lasts_s: tuple[float, float]
) -> list[Fault]:
    """`count` faults over the time, each kind as often as any other."""
    order: list[str] = []
    while len(order) < count:
        order += chance.sample(kinds, len(kinds)) if kinds is KINDS else kinds
    every = seconds / max(1, count)
    return [
        Fault(every * (at + chance.uniform(0.1, 0.6)), kind, chance.choice(NAMES), chance.uniform(*lasts_s))
        for at, kind in enumerate(order[:count])
    ]


# -- the storm -------------------------------------------------------------------------------------------------------


@dataclass
class Wipe:
    """A host that was begun anew."""

    replica: str
    started: float
    trouble: Trouble


class Storm:
    """Does the faults and ends them, in the thread that started the processes."""

    def __init__(
        self,
        network: Network,
        database: Database,
        storage: ObjectStore,
        replicas: dict[str, Replica],
        eye: Eye,
        seen: dict[str, Seen],
        chance: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self.network, self.database, self.storage = network, database, storage
        self.replicas, self.eye, self.seen, self.chance, self.say = replicas, eye, seen, chance, say
        self.troubles: list[Trouble] = []
        self.done: Counter[str] = Counter()
        self.not_done: list[str] = []
        self.wipes: list[Wipe] = []
        self.asked: Counter[str] = Counter()
        self.here: dict[tuple[str, int], float] = {}  # since when a replica has a version
        self._waiting: list[tuple[Callable[[], bool], Callable[[], None], float, str]] = []
        self._away: set[str] = set()  # being stopped or started by us
        self._began = time.time()
        self._ask_at = 0.0

    def run(self, faults: list[Fault], seconds: float) -> None:
        """Until the time is over and everything that was done is undone."""
        left = list(faults)
        while (now := time.time() - self._began) < seconds or left or self._waiting:
            self._tick()
            while left and left[0].at <= now:
                self._do(left.pop(0))
            if now < seconds and now >= self._ask_at:
                self._ask_at = now + ASK_EVERY_S
                self._ask()
            if now > seconds + SETTLE_S:
                raise AssertionError(f"not over: {[what for *_, what in self._waiting]}")
            time.sleep(TICK_S)

    def calm(self, seconds: float) -> None:
        """Let time pass, with an eye on the processes."""
        until = time.time() + seconds
        while time.time() < until:
            self._tick()
            time.sleep(TICK_S)

    def _tick(self) -> None:
        now = time.time()
        for entry in list(self._waiting):
            condition, action, until, what = entry
            if condition():
                self._waiting.remove(entry)
                action()
            elif now > until:
                self._waiting.remove(entry)
                self.not_done.append(what)
                self.say(f"{now - self._began:6.1f} s: {what}: it did not come to that")
        for name, replica in self.replicas.items():
            folder = replica.models
            for version in os.listdir(folder) if folder.is_dir() else ():
                if version.isdecimal():
                    self.here.setdefault((name, int(version)), now)
            assert replica.process is not None
            if name not in self._away and replica.process.poll() is not None:
                self.say(f"{now - self._began:6.1f} s: {name}: the server has ended, it is started again")
                self._start_again(name, self._begin(name, answers=True))

    # what is done

    def _do(self, fault: Fault) -> None:
        self._say(fault)
        step, colon, hit = fault.kind.rpartition(": ")
        if colon:
            self._at(step, hit, fault)
            return
        first, _, second = fault.kind.partition(" ")
        if first in ("kill", "stop"):
            self._signal(first, second, fault.replica, fault)
        elif first == "cut":
            self._cut(second, fault.replica, fault)
        elif first in ("storage", "database"):
            getattr(self, f"_{first}")(second, fault)
        elif first == "wipe":
            self._wipe(fault)
        else:
            self._busy_disk(fault)

    def _say(self, fault: Fault, more: str = "") -> None:
        self.say(f"{time.time() - self._began:6.1f} s: {fault.kind} ({fault.replica}, {fault.lasts_s:.0f} s){more}")

    def _when(self, condition: Callable[[], bool], action: Callable[[], None], what: str, within: float) -> None:
        self._waiting.append((condition, action, time.time() + within, what))

    def _after(self, seconds: float, action: Callable[[], None], what: str) -> None:
        until = time.time() + seconds
        self._when(lambda: time.time() >= until, action, what, seconds + 60)

    def _begin(self, replica: str, *, answers: bool = False, storage_only: bool = False) -> Trouble:
        trouble = Trouble(replica, answers, time.time(), storage_only=storage_only)
        self.troubles.append(trouble)
        return trouble

    def _end(self, *troubles: Trouble) -> None:
        for trouble in troubles:
            trouble.ended = time.time()

    def _go_on(self, stopped: list[psutil.Process], trouble: Trouble) -> None:
        for one in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)
        self._end(trouble)

    def _signal(self, how: str, role: str, name: str, fault: Fault) -> None:
        replica = self.replicas[name]
        found = processes(replica, role)
        if not found or name in self._away:  # of an earlier fault: it is not back yet
            self._when(
                lambda: name not in self._away and bool(processes(replica, role)),
                lambda: self._signal(how, role, name, fault),
                fault.kind,
                STEP_COMES_S,
            )
            return
        self.done[fault.kind] += 1
        family = family_of(replica.process.pid) if replica.process else []
        silent = role == "worker" or (how == "kill" and role in ("serve", "supervisor"))
        trouble = self._begin(name, answers=silent)
        pids = {one.pid for one in found}
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        if how == "stop":
            self._after(fault.lasts_s, lambda: self._go_on(found, trouble), f"{name} goes on")
        elif role in ("serve", "supervisor"):
            self._start_again(name, trouble, family)
        elif role == "job":
            self._end(trouble)
        else:
            self._when(
                lambda: any(one.pid not in pids for one in processes(replica, role)),
                lambda: self._end(trouble),
                f"{role} of {name} is back",
                SETTLE_S,
            )

    def _start_again(self, name: str, trouble: Trouble, family: list[psutil.Process] | None = None) -> None:
        replica = self.replicas[name]
        self._away.add(name)

        def gone() -> bool:
            assert replica.process is not None
            return replica.process.poll() is not None and not any(alive(one) for one in family or [])

        def start() -> None:
            replica.start()
            self._away.discard(name)
            self._when(
                lambda: bool(processes(replica, "controller")), lambda: self._end(trouble), f"{name} is back", SETTLE_S
            )

        self._when(gone, start, f"{name} has ended", SETTLE_S)

    def _cut(self, from_what: str, name: str, fault: Fault) -> None:
        self.done[fault.kind] += 1
        host = self.replicas[name].host
        others = [one.host for one, kind in ((self.database, "database"), (self.storage, "storage"))]
        cut = {"database": others[:1], "storage": others[1:], "both": others}[from_what]
        trouble = self._begin(name, storage_only=from_what == "storage")
        for other in cut:
            self.network.cut(host, other)

        def mend() -> None:
            for other in cut:
                self.network.mend(host, other)
            self._end(trouble)

        self._after(fault.lasts_s * 2, mend, f"{name} is mended")

    def _storage(self, how: str, fault: Fault) -> None:
        self.done[fault.kind] += 1
        troubles = [self._begin(name, storage_only=True) for name in NAMES]
        hosts = [replica.host for replica in self.replicas.values()]
        if how == "stopped":
            self.storage.send(signal.SIGSTOP)
        else:
            for host in hosts:
                self.network.cut(host, self.storage.host)

        def mend() -> None:
            self.storage.send(signal.SIGCONT)
            for host in hosts if how != "stopped" else ():
                self.network.mend(host, self.storage.host)
            self._end(*troubles)

        self._after(fault.lasts_s * 1.5, mend, "the storage is back")

    def _database(self, how: str, fault: Fault) -> None:
        self.done[fault.kind] += 1
        troubles = [self._begin(name) for name in NAMES]
        self.database.send(signal.SIGKILL if how == "killed" else signal.SIGSTOP)

        def back() -> None:
            if how == "killed":
                self.database.start()
            else:
                self.database.send(signal.SIGCONT)
            self._end(*troubles)

        self._after(fault.lasts_s, back, "the database is back")

    def _wipe(self, fault: Fault, tries: int = 3) -> None:
        """Of a replica that nothing stands against, so that it can drain to the end."""
        free = [name for name in NAMES if name not in self._away and not self._troubled(name)]
        if not free:
            self._when(
                lambda: any(name not in self._away and not self._troubled(name) for name in NAMES),
                lambda: self._wipe(fault, tries),
                fault.kind,
                STEP_COMES_S,
            )
            return
        name = fault.replica if fault.replica in free else free[0]
        replica, trouble = self.replicas[name], self._begin(name, answers=True)
        self._away.add(name)
        assert replica.process is not None
        family = family_of(replica.process.pid)
        replica.process.send_signal(signal.SIGTERM)

        def gone() -> bool:
            assert replica.process is not None
            return replica.process.poll() is not None and not any(alive(one) for one in family)

        def wipe() -> None:
            waiting = replica.waiting()
            if waiting:
                self.say(f"{name}: {waiting} segments wait in its spool, it is started again as it is")
                self._start_again(name, trouble)
                if tries > 1:
                    self._after(5, lambda: self._wipe(fault, tries - 1), fault.kind)
                return
            shutil.rmtree(replica.home)
            replica.home.mkdir()
            self.here = {one: at for one, at in self.here.items() if one[0] != name}
            self.done[fault.kind] += 1
            self.wipes.append(Wipe(name, time.time(), trouble))
            replica.start()
            self._away.discard(name)
            began = time.time()
            answers = self.seen[name].attempts
            self._when(
                lambda: bool(answers) and answers[-1].version > 0 and answers[-1].began > began,
                lambda: self._end(trouble),
                f"{name} answers",
                SETTLE_S,
            )

        self._when(gone, wipe, f"{name} has ended", SETTLE_S)

    def _troubled(self, name: str) -> bool:
        return any(one.replica == name and one.ended > time.time() for one in self.troubles)

    def _busy_disk(self, fault: Fault) -> None:
        """Somebody writes and syncs all the time on the disk that all homes are on."""
        self.done[fault.kind] += 1
        target = self.replicas[fault.replica].home.parent / "busy"
        writer = subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=100000", "oflag=dsync"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def stop() -> None:
            writer.kill()
            writer.wait()
            target.unlink(missing_ok=True)

        self._after(min(fault.lasts_s, 6.0), stop, "the disk is free")

    # the leader, in the middle of a step

    def _at(self, step: str, hit: str, fault: Fault) -> None:
        """Have somebody ask for it, and hit the leader as soon as it is at it."""
        coming = {
            "training": lambda: self.eye.working is not None and bool(self._jobs()),
            "announce": lambda: self.eye.announced > 0,
            "flip": lambda: self.eye.held,
        }[step]
        if step == "flip":
            self._hold_flips(2.0)
            self._after(STEP_COMES_S, lambda: self._hold_flips(None), "flips are free")
        again_at = 0.0

        def come() -> bool:
            nonlocal again_at
            if coming():
                return True
            if time.time() > again_at:  # what was asked before may have been lost with another leader
                again_at = time.time() + 15
                self.request("retrain" if step == "training" else "promote", self.chance.choice(NAMES))
            return False

        def strike() -> None:
            leader = self._leader()
            if leader is None:
                self.not_done.append(fault.kind)
            else:
                self._say(fault, f": hits {leader}")
                how, _, role = hit.partition(" ")
                if how == "cut":
                    self._cut(role, leader, fault)
                else:
                    self._signal(how, role, leader, fault)
            if step == "flip":
                self._hold_flips(None)

        self._when(come, strike, fault.kind, STEP_COMES_S)

    def _leader(self) -> str | None:
        for name, replica in self.replicas.items():
            if any(one.pid == self.eye.leader for one in processes(replica, "controller")):
                return name
        return None

    def _jobs(self) -> list[psutil.Process]:
        leader = self._leader()
        return processes(self.replicas[leader], "job") if leader else []

    def _hold_flips(self, seconds: float | None) -> None:
        def write() -> None:
            engine = self.database.engine()
            with contextlib.suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
                connection.exec_driver_sql("delete from hold_flip")
                if seconds:
                    connection.exec_driver_sql(f"insert into hold_flip values ({seconds})")

        self.network["eye"].begin(write)

    # people

    def _ask(self) -> None:
        what = self.chance.choices(("promote", "retrain", "push", "rollback"), (8, 3, 2, 1))[0]
        self.request(what, self.chance.choice(NAMES))

    def request(self, what: str, name: str) -> None:
        replica, eye = self.replicas[name], self.eye
        others = [version for version in eye.versions if version != eye.champion]
        if what == "promote" and not others:
            what = "retrain"
        version = self.chance.choice(others) if what == "promote" else 0
        pushed = replica.models / str(eye.champion) / "model.skops"

        def ask() -> None:
            try:
                with Client(replica.url, TOKEN, timeout_s=30, retry_s=0) as client:
                    if what == "promote":
                        client.promote(version, "a person, in the storm")
                    elif what == "push":
                        client.push(pushed.read_bytes(), "a person, in the storm")
                    elif what == "retrain":
                        client.retrain("a person, in the storm")
                    else:
                        client.rollback("a person, in the storm")
                self.asked[what] += 1
            except (EvergreenClientError, OSError) as error:
                self.asked[f"{what} not accepted"] += 1
                self.say(f"{time.time() - self._began:6.1f} s: {name} does not take {what}: {str(error)[:150]}")

        replica.host.begin(ask)


def processes(replica: Replica, role: str) -> list[psutil.Process]:
    """Those of a replica that are alive, by what they are."""
    assert replica.process is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        if role == "serve":
            found = [psutil.Process(replica.process.pid)]
        elif role == "supervisor":
            found = psutil.Process(replica.process.pid).children()
        elif role == "job":
            found = [one for one in family_of(replica.process.pid) if "training.job" in _words(one)]
        else:
            found = replica.children({"worker": "PredictionService", "controller": "Controller"}[role])
        return [one for one in found if alive(one)]
    return []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- the verdict -----------------------------------------------------------------------------------------------------


def unexcused(attempts: list[Attempt], troubles: list[Trouble]) -> list[Attempt]:
    """The failed requests that our own doing does not explain."""
    spans = []
    for trouble in troubles:
        if trouble.answers:
            good = (one.ended for one in attempts if one.version and one.began >= trouble.ended)
            spans.append((trouble.began, next(good, float("inf"))))
    return [
        one
        for one in attempts
        if not one.version and not any(one.began <= until and one.ended >= since for since, until in spans)
    ]


class Reach(NamedTuple):
    """How long after a flip (or, with `after_trouble`, after what stood against it was over) a replica answered so."""

    replica: str
    version: int
    at: float
    after_trouble: bool
    seconds: float  # infinite when it never did


def reached(
    name: str,
    noted: list[Fact],
    attempts: list[Attempt],
    troubles: list[Trouble],
    here: dict[tuple[str, int], float],
    until: float,
    soon_s: float,
    back_s: float,
) -> list[Reach]:
    """Every change of the champion that stood long enough to be judged, before the clients ended (`until`).

    Due within `soon_s` of the flip, or within `back_s` of the end of what stood against it, whichever is later.
    """
    moves = [flip for flip in flips(noted) if flip.at < until]
    found = []
    for flip, following in zip(moves, [*moves[1:], None], strict=True):
        reference, bound = flip.at, soon_s
        for trouble in sorted(troubles, key=lambda one: one.began):
            if trouble.storage_only and here.get((name, flip.version), float("inf")) <= flip.at:
                continue  # it had the version already
            if trouble.began <= reference + bound < trouble.ended + back_s:
                reference, bound = trouble.ended, back_s
        answers = (one.ended for one in attempts if one.version == flip.version and one.ended >= flip.at)
        at = next(answers, float("inf"))
        over = min(until, following.at if following else until)
        if over < reference + bound and at > over:
            continue
        found.append(Reach(name, flip.version, flip.at, reference != flip.at, max(0.0, at - reference)))
    return found


def stored(engine: sa.Engine, table: str) -> Counter[str]:
    with engine.connect() as connection:
        return Counter(connection.exec_driver_sql(f"select id from {table}").scalars())


def errors(engine: sa.Engine) -> list[tuple[str, int]]:
    """Why runs did not end well, and how many for each reason."""
    with engine.connect() as connection:
        told = connection.exec_driver_sql(
            "select kind || ' ' || outcome || ': ' || left(record::json->>'error', 300), count(*) from runs "
            "where record::json->>'error' is not null and kind <> 'check' group by 1 order by 2 desc"
        )
        return [(str(error), int(count)) for error, count in told]


# -- all of it -------------------------------------------------------------------------------------------------------


def run(
    *,
    minutes: float = 10.0,
    seed: int = 0,
    faults: int = 44,
    kinds: tuple[str, ...] = KINDS,
    lease_s: float = 10.0,
    check_s: float = 30.0,
    lasts_s: tuple[float, float] = (4.0, 12.0),
    slack: float = 1.0,
    logs: Path | None = None,
    json_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[tuple[str, bool]]:
    """Measure and print; each line and whether it holds. Raises `NotPermitted`.

    `kinds` of faults are done in this order, again and again; all of them in random order. `slack` is what the seconds
    of the lines are multiplied by, on a machine that has much else to do.
    """
    chance = random.Random(seed)
    names = (*NAMES, "database", "storage", "eye")
    done = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-hosts-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        network = stack.enter_context(Network(*names))
        database = stack.enter_context(Database(network["database"]))
        storage = stack.enter_context(ObjectStore(network["storage"]))
        stack.callback(done.set)
        if logs is not None:
            stack.callback(_keep_logs, Path(folder), logs)
        look = network["eye"]
        look.call(lambda: open_store(database.url).dispose())
        look.call(install, database.engine())
        replicas = {}
        for name in NAMES:
            replica = Replica(
                network[name],
                Path(folder),
                environ=storage.environ,
                STORE__URL=database.url,
                STORE__ARTEFACTS=storage.url,
                SCHEDULE__LEASE_S=str(lease_s),
                SCHEDULE__CHECK_INTERVAL_S=str(check_s),
                **SETTINGS,
            )
            stack.callback(replica.end)
            replicas[name] = replica.start()
        began = time.time()
        for replica in replicas.values():
            replica.wait_ready()
        say(f"three replicas are ready after {time.time() - began:.1f} s")
        eye = Eye(database.url)
        look.begin(eye.look, done)
        seen = {name: Seen() for name in NAMES}
        rows = records(4000, seed + 1)
        labels = [int(one) for one in sample.frame(4000, seed=seed + 1)[sample.TARGET]]
        for name in NAMES:
            network[name].begin(send, replicas[name], seen[name], rows, labels, done)
        home = Path(folder) / "eye"
        environ = replicas["one"].env | {"EVERGREEN_HOME": str(home)}
        subprocess.run([*look.prefix, sys.executable, "-c", COPIES], cwd=ROOT, env=environ, check=True, timeout=300)
        wait_until("three versions", lambda: len(eye.versions) == 3)
        say(f"the storm begins with versions {eye.versions} after {time.time() - began:.1f} s")
        storm = Storm(network, database, storage, replicas, eye, seen, chance, say)
        storm.run(schedule(chance, faults, minutes * 60, kinds, lasts_s), minutes * 60)
        return _verdict(storm, done, minutes, seed, slack, json_to, say)


def _keep_logs(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, to)


def _verdict(
    storm: Storm,
    done: threading.Event,
    minutes: float,
    seed: int,
    slack: float,
    json_to: Path | None,
    say: Callable[[str], None],
) -> list[tuple[str, bool]]:
    soon_s, back_s, wiped_s = slack * SOON_S, slack * BACK_S, slack * WIPED_S
    seen, replicas, look = storm.seen, storm.replicas, storm.network["eye"]
    storm.calm(BACK_S)
    storm.request("promote", NAMES[0])
    storm.calm(SOON_S)
    until = time.time() + soon_s + BACK_S
    while time.time() < until and {one.attempts[-1].version for one in seen.values()} != {storm.eye.champion}:
        storm.calm(1.0)
    versions = {one.attempts[-1].version for one in seen.values()}
    done.set()
    ended_at = time.time()
    acknowledged = {one for each in seen.values() for one in each.acknowledged}
    labelled = {one for each in seen.values() for one in each.labelled}
    engine = storm.database.engine()
    until = time.time() + SETTLE_S
    while time.time() < until:
        rows, labels = look.call(stored, engine, "predictions"), look.call(stored, engine, "labels")
        if acknowledged <= rows.keys() and labelled <= labels.keys():
            break
        storm.calm(1.0)
    codes = {name: replica.stop() for name, replica in replicas.items()}
    rows, labels = look.call(stored, engine, "predictions"), look.call(stored, engine, "labels")
    noted = look.call(facts, engine)
    of = {name: [one for one in storm.troubles if one.replica == name] for name in NAMES}
    bounds = (ended_at, soon_s, back_s)
    reaches = [
        one for name in NAMES for one in reached(name, noted, seen[name].attempts, of[name], storm.here, *bounds)
    ]
    at_once = [one.seconds for one in reaches if not one.after_trouble]
    after = [one.seconds for one in reaches if one.after_trouble]
    late = [one for one in reaches if one.seconds > (back_s if one.after_trouble else soon_s)]
    failed = {name: unexcused(seen[name].attempts, of[name]) for name in NAMES}
    wiped = [
        next(
            (one.ended for one in seen[wipe.replica].attempts if one.version and one.began > wipe.started), float("inf")
        )
        - wipe.started
        for wipe in storm.wipes
    ]
    wrong = problems(noted, besides=look.address)
    firsts = [one for one in noted if one.what == "runs" and one.fact["kind"] == "bootstrap"]
    lost = [one for one in acknowledged if not rows[one]] + [one for one in labelled if not labels[one]]
    doubled = [one for each in (rows, labels) for one, count in each.items() if count > 1]
    ended = Counter(
        f"{one.fact['kind']} {one.fact['outcome']}"
        for one in noted
        if one.what == "runs" and one.fact["state"] in ("done", "failed") and one.fact["kind"] != "check"
    )
    tokens = {one.token for one in noted if one.token}
    table = [
        ("acknowledged rows; labels", f"{len(acknowledged):,}; {len(labelled):,}"),
        ("requests; failed; of these not explained", _requests(seen, failed)),
        (
            "faults done; that found nothing to hit",
            f"{sum(storm.done.values())}; {', '.join(storm.not_done) or 'none'}",
        ),
        *((f"  {kind}", str(count)) for kind, count in sorted(storm.done.items())),
        ("asked for", ", ".join(f"{what} {count}" for what, count in sorted(storm.asked.items()))),
        ("runs that ended", ", ".join(f"{what} {count}" for what, count in sorted(ended.items()))),
        ("writes of decisions noted; holders of the lease", f"{sum(one.decided for one in noted):,}; {len(tokens)}"),
        ("changes of the champion", str(len(flips(noted)))),
        ("flip until answered with, s: nothing against it", report.Spread.of(at_once).text() if at_once else "none"),
        ("after what stood against it was over, s", report.Spread.of(after).text() if after else "none"),
        ("wiped hosts: start until the champion answers, s", ", ".join(f"{one:.1f}" for one in wiped) or "none"),
        ("exit codes of the servers at the end", str(codes)),
    ]
    for error, count in look.call(errors, engine):
        say(f"  {count} times {error}")
    for one in (*late, *wrong):
        say(f"  {one}")
    for name, attempts in failed.items():
        for attempt in attempts[:5]:
            say(f"  {name}: {attempt}")
    say("\n" + report.table((f"{minutes:g} minutes, seed {seed}", ""), table))
    lines = [
        (
            f"rows: 0 of {len(acknowledged) + len(labelled):,} lost ({len(lost)}) or doubled ({len(doubled)})",
            not (lost or doubled),
        ),
        (f"one hand: {len(wrong)} writes by somebody else than the holder of the lease", not wrong),
        (f"promotions: {len(late)} of {len(reaches)} late", not late),
        (f"in the end all replicas answer with one version: {versions}", len(versions) == 1 and 0 not in versions),
        (
            f"answers: {sum(map(len, failed.values()))} requests failed on a host that can serve",
            not any(failed.values()),
        ),
        (
            f"wiped: within {wiped_s:g} s, and {len({one.fact['id'] for one in firsts})} first version trained in all",
            all(one <= wiped_s for one in wiped) and len({one.fact["id"] for one in firsts}) == 1,
        ),
        (f"the servers end in order: {codes}", not any(codes.values())),
    ]
    for text, holds in lines:
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")
    report.write_json(
        json_to,
        {
            "benchmark": "hosts",
            "machine": report.machine(),
            "seed": seed,
            "minutes": minutes,
            "faults": dict(storm.done),
            "table": dict(table),
            "lines": [{"line": text, "holds": holds} for text, holds in lines],
        },
    )
    return lines


def _requests(seen: dict[str, Seen], failed: dict[str, list[Attempt]]) -> str:
    attempts = [one for each in seen.values() for one in each.attempts]
    bad = sum(not one.version for one in attempts)
    return f"{len(attempts):,}; {bad}; {sum(map(len, failed.values()))}"


@contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM leaves the block as an exception does, so that everything that it made is taken away."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=44)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="only these, in this order, again and again")
    parser.add_argument("--slack", type=float, default=1.0, help="the seconds of the lines are multiplied by this")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the servers' logs there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    try:
        with ended_in_order():
            lines = run(
                minutes=given.minutes,
                seed=given.seed,
                faults=given.faults,
                kinds=tuple(given.kinds) if given.kinds else KINDS,
                slack=given.slack,
                logs=given.logs,
                json_to=given.json,
                say=lambda line: print(line, flush=True),
            )
    except NotPermitted as error:
        print(f"skipped: {error}")
        return 0
    return 0 if all(holds for _, holds in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
