"""Storing what is in a spool whose server does it no more: at the end of `evergreen serve`, and `evergreen drain`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from monitoring.drain import Drainer, DrainFailed, SpoolBusy, rows_waiting
from monitoring.errors import first_line
from monitoring.spool import segments
from service.secret_file import home_id

if TYPE_CHECKING:
    import sqlalchemy as sa

    from service.settings import Settings

RETRY_S: Final = 0.5
BUSY_S: Final = 2.0
"""How long a process that was just killed may hold the spool's lock."""


class Drained(NamedTuple):
    """What came of it. Counts are of this call; rows that were stored before are not among them."""

    spool: str
    predictions: int = 0
    labels: int = 0
    others: int = 0
    """Refused requests, and what could not be understood."""
    rows_left: int = 0
    """At most: while the store is away nobody knows which rows of an open segment it has already."""
    why: str = ""
    """Why rows are left."""

    @property
    def sentence(self) -> str:
        if self.rows_left:
            return (
                f"up to {self.rows_left:,} rows are left in {self.spool} ({self.why}): keep it, they are stored when a "
                "server starts here again, or by `evergreen drain`"
            )
        others = f", {self.others:,} others" if self.others else ""
        return (
            f"stored {self.predictions:,} predictions, {self.labels:,} labels{others}; nothing is left in {self.spool}"
        )


def drain(
    settings: Settings,
    seconds: float,
    *,
    say: Callable[[str], None],
    enough: Callable[[], bool] = lambda: False,
) -> Drained:
    """Store everything in the spool of `settings`, for `seconds` at most, or until `enough`.

    A store that is away is waited for, and `say` is told so. Giving up in the middle, like any kill, neither loses nor
    doubles a row. Raises `SpoolBusy` while a server drains this spool, `StoreTooNew`,
    and `HomeGone` when a person said that this home does not come back: erasures did not wait for its rows.
    """
    spool = str(settings.spool_dir)
    if not segments(settings.spool_dir):
        return Drained(spool)
    work = _Work(settings, say)
    until = time.monotonic() + seconds
    if seconds:
        # A thread of its own: a database that answers nothing at all must not hold the caller beyond its time.
        thread = threading.Thread(target=work.run, name="evergreen-drain", daemon=True)
        thread.start()
        while thread.is_alive() and time.monotonic() < until and not enough():
            thread.join(0.1)
        work.over.set()
    return work.outcome()


class _Work:
    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self.over = threading.Event()
        self._home = home_id(settings)
        self._drainer: Drainer | None = None
        self._done = Drained(str(settings.spool_dir))
        self._why = "there was no time to store them"
        self._error: Exception | None = None

    def run(self) -> None:
        from monitoring.store import connect

        engine = connect(self._settings.store_url)
        try:
            with self._opened(engine) as self._drainer:
                while not self._turn(engine, self._drainer) and not self.over.wait(RETRY_S):
                    pass
        except Exception as error:
            self._error = error
        finally:
            engine.dispose()

    def outcome(self) -> Drained:
        """What was done so far. Raises what ended the work."""
        if self._error is not None:
            raise self._error
        folder, drainer = self._settings.spool_dir, self._drainer
        left = rows_waiting(folder) if drainer is None else drainer.rows_waiting()
        return self._done._replace(rows_left=left, why=self._why if left else "")

    def _opened(self, engine: sa.Engine) -> Drainer:
        until = time.monotonic() + BUSY_S
        while True:
            try:
                return Drainer(self._settings.spool_dir, engine)
            except SpoolBusy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _turn(self, engine: sa.Engine, drainer: Drainer) -> bool:
        """Whether nothing is left; what the store says against it is told once, and kept as the reason."""
        import sqlalchemy as sa

        from monitoring.store import open_store
        from training.homes import HomeGone, is_gone

        try:
            open_store(self._settings.store_url).dispose()  # its tables, as this program knows them
            if is_gone(engine, self._home):
                raise HomeGone(self._home, self._settings.var)
            result = drainer.drain(time.time())
        except (sa.exc.SQLAlchemyError, DrainFailed) as error:
            why = f"the store does not take them: {first_line(error)}"
            if why != self._why:
                self._say(why)
            self._why = why
            return False
        done = self._done
        self._done = done._replace(
            predictions=done.predictions + result.predictions,
            labels=done.labels + result.labels,
            others=done.others + result.rejections + result.dead,
        )
        return not result.bytes_left
