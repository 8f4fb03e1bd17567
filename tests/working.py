"""A worker of a deployment in a folder, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.configuration import load
from service.handover import ControllerStatus, Live, LiveVersion, write_live, write_status
from service.serving.worker import Worker
from tests.places import Place
from tests.stand_in import TOKEN


@contextmanager
def working(place: Place, home: Path, store_url: str = "") -> Iterator[Worker]:
    """A worker that answers with the champion of this place, beside a controller that has said that it is well.

    `store_url` is where the rows of the place are when they are not its own file.
    """
    settings = load(
        environ={
            "EVERGREEN_HOME": str(home),
            "EVERGREEN_STORE__URL": store_url or f"sqlite:///{home}/evergreen.db",
            "EVERGREEN_STORE__VAR": str(home),
            "EVERGREEN_MODEL__NAME": "credit",
            "EVERGREEN_SECURITY__TOKEN": TOKEN,
            "EVERGREEN_SERVE__WORKERS": "1",
        }
    )
    champion = place.registry.champion()
    live = Live(model="credit", champion=LiveVersion(champion, str(place.registry.path(champion))))
    write_live(settings.live_file, live)
    worker = Worker(settings, home / "run", "api-1")
    worker.start()
    write_status(home / "run", ControllerStatus(at=place.now, holder="me", spool_bytes=512))
    try:
        yield worker
    finally:
        worker.close()
