"""A pushed file, looked at in seconds before a run is queued for it; in a process of its own, and bounded.

The file may be anything: who loads it may run out of memory, never end or crash, and an API worker must not. What costs
least comes first, so that what is no model at all is refused before scikit-learn is imported. The process does not give
way to others: who pushed waits for the answer.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from monitoring.errors import CannotGoOn
from monitoring.schema import FeatureSchema
from training.artefact import ArtefactError
from training.interface import check_interface, check_said
from training.known_types import is_of, names_of_types, not_installed
from training.onnx_file import check_graph, is_onnx, load_onnx
from training.priority import THREAD_VARIABLES, bound_memory, end_with_parent
from training.skops_file import read
from training.trust import NotInstalled, UntrustedModel, check_form, load_skops

LONGEST_S: Final = 30.0
"""Seconds; a model that takes longer to load is left to the run, which has more time."""

_KNOWN: Final = frozenset({"builtins", "collections", "datetime", "functools", "numpy", "operator", "scipy", "sklearn"})
"""Packages of which skops or `training.known_types` trust some types, at most."""


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is given, as JSON on its standard input."""

    path: str
    schema: str | None  # path of the champion's schema.json; None: there is no champion yet
    trusted: tuple[str, ...] = ()
    memory_mb: int = 0  # of private memory; 0: unbounded


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What the process answers, as JSON on its standard output; `problem` "": nothing speaks against the file."""

    problem: str = ""


def problem_of(pushed: Pushed, *, longest_s: float = LONGEST_S) -> str:
    """Why the file must be refused, and what to do; "" when a run should judge it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "training.admission"],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(msgspec.json.encode(pushed), timeout=longest_s)
    except subprocess.TimeoutExpired:
        return ""
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        how = f"ended by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else "broken off"
        return (
            f"the file was not taken: the process that loaded it was {how}, with {pushed.memory_mb} MB of memory at "
            "most: push a smaller model, written with skops.io.dump, or raise `training.memory_mb`"
        )
    return msgspec.json.decode(said, type=Finding).problem


def check(pushed: Pushed) -> None:
    """Raises `ArtefactError` for a file that cannot become a version: what, with which value, and what to do."""
    path = Path(pushed.path)
    schema = None if pushed.schema is None else FeatureSchema.from_json(Path(pushed.schema).read_bytes())
    if is_onnx(path):
        if schema is None:
            check_graph(path)
        else:
            load_onnx(path, schema)
        return
    content = check_form(path)
    names = names_of_types(content)
    strangers = {name for name in names if name.partition(".")[0] not in _KNOWN and not is_of(name, pushed.trusted)}
    if unknown := strangers - set(pushed.trusted):
        raise UntrustedModel("the pushed file", sorted(unknown))
    if missing := not_installed(names, pushed.trusted):
        raise NotInstalled("the pushed file", missing)
    said = read(path, content)
    _check_release(said.releases)
    if schema is not None:
        check_said(said, schema)
    model = load_skops(path, pushed.trusted)
    if schema is not None:
        from training.blame import check_takes_a_row

        check_interface(model, schema)
        check_takes_a_row(model, schema)


def _check_release(found: Collection[str]) -> None:
    """Raises `ArtefactError` for a model of another minor release of scikit-learn.

    Whether it predicts the same here cannot be proved: only its own release could say what it should answer.
    """
    here = importlib.metadata.version("scikit-learn")
    minor = ".".join(here.split(".")[:2])
    for release in found:
        if ".".join(release.split(".")[:2]) != minor:
            raise ArtefactError(
                f"the pushed file was written with scikit-learn {release}, this service has {here}, and nothing here "
                f"can prove that the model predicts the same with both: fit and write it with scikit-learn {minor}, or "
                "convert it with skl2onnx where it was fitted and push the ONNX file, which needs no scikit-learn"
            )


def main() -> int:
    """Check the file of the request on standard input, and say what was found on standard output."""
    import resource

    pushed = msgspec.json.decode(sys.stdin.buffer.read(), type=Pushed)
    end_with_parent(signal.SIGKILL)
    bound_memory(pushed.memory_mb)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        check(pushed)
        finding = Finding()
    except CannotGoOn as error:
        finding = Finding(problem=str(error).replace(pushed.path, "the pushed file"))
    sys.stdout.buffer.write(msgspec.json.encode(finding))
    return 0


if __name__ == "__main__":
    sys.exit(main())
