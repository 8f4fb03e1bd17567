"""What a process needs to know of the server it belongs to: the tree's folder, its role, its parent."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from service.settings import HOME_VARIABLE, ROLE_VARIABLE, RUN_DIR_VARIABLE, Settings, SettingsError
from training.priority import end_with_parent

INSTALL_ROOT: Final = Path(__file__).resolve().parent.parent
"""The folder that holds our three packages."""

DISTRIBUTION: Final = "evergreen-serving"
"""Its name among packages; the command is `evergreen`."""

ORPHAN_GRACE_S: Final = 2.0
NAMELESS_S: Final = 3600.0

STOPPING: Final = "stopping"
CLOSING: Final = "closing"
"""Files of the run folder. First: the server is stopping, answers close their connections. Then: nobody new gets in."""

SUPERVISOR: Final = "supervisor"
"""File of the run folder with the process id of BentoML's supervisor, which may end before a child asks for it."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One running server: its processes share `run_dir` and no other server does.

    `role` is `serve`, or `gate` for a server started only to check a candidate: no controller, no recording.
    """

    run_dir: Path
    role: str

    @property
    def records(self) -> bool:
        return self.role != "gate"

    @classmethod
    def of(cls, settings: Settings, supervisor: int) -> Tree:
        """The tree this process belongs to, from what its parent left in the environment.

        Under plain `bentoml serve` the tree is named after the supervisor's process id.
        Raises `SettingsError` inside a built bento without an absolute EVERGREEN_HOME: data kept inside the bento's
        folder would be gone with the next build.
        """
        inside_bento = any(parent.name == "bentos" for parent in Path(__file__).resolve().parents)
        if inside_bento and not Path(os.environ.get(HOME_VARIABLE, "")).is_absolute():
            raise SettingsError(
                f"{HOME_VARIABLE} is {os.environ.get(HOME_VARIABLE, '')!r} and this is a built bento: "
                f"set it to an absolute folder outside the bento, {HOME_VARIABLE}=/srv/evergreen, so that the record "
                "and the models survive the next build"
            )
        given = os.environ.get(RUN_DIR_VARIABLE)
        run_dir = Path(given) if given else settings.var / "run" / f"bentoml-{supervisor}"
        return cls(run_dir=run_dir, role=os.environ.get(ROLE_VARIABLE, "serve"))


def forget_trees(folder: Path) -> list[str]:
    """Delete the run folders in `folder` of servers that are gone and could not do it themselves; their names."""
    forgotten = []
    for run_dir in folder.iterdir() if folder.is_dir() else ():
        named = run_dir / SUPERVISOR
        pid = named.read_text() if named.exists() else run_dir.name.removeprefix("bentoml-")
        # One without the file is just being started, or was killed before it had one.
        gone = not alive(int(pid)) if pid.isdecimal() else time.time() - run_dir.stat().st_mtime > NAMELESS_S
        if gone:
            shutil.rmtree(run_dir, ignore_errors=True)
            forgotten.append(run_dir.name)
    return forgotten


def alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def exit_with_parent(tree: Tree) -> None:
    """Make this process end when its supervisor does, however that died, also before this call.

    On Linux the kernel sends SIGTERM; everywhere a thread watches the parent and, when the polite end takes longer than
    2 s, ends the process. Nothing acknowledged is lost: it is in the spool.
    """
    named = tree.run_dir / SUPERVISOR
    parent = int(named.read_text()) if named.exists() else os.getppid()
    end_with_parent(signal.SIGTERM)
    threading.Thread(target=_watch, args=(parent,), name="evergreen-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)


def installed_version(package: str) -> str:
    """The version of an installed distribution; "unknown" when it runs from files that were never installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
