"""Trials on a Dask cluster: each is sent out whole, so a worker fits what this process would have fitted.

The workers need this release and the same libraries: a model depends on their versions. Dask sends code as pickles, so
whoever reaches the scheduler runs what they like on every worker: keep it on a network of your own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from training.export import libraries
from training.spec import JobError
from training.trial import Folds, Outcome, Scores, evaluate
from training.tune import Run

CONNECT_WITHIN_S: Final = 10.0


@contextmanager
def on_cluster(address: str, folds: Folds, threads: int) -> Iterator[Run]:
    """What `training.tune.search` is given to have its trials done by the workers of the scheduler at `address`.

    Raises `JobError` when Dask is not installed, the scheduler does not answer, it has no worker, or a worker differs.
    """
    try:
        from distributed import Client
    except ImportError:
        raise JobError(
            'training.backend is "dask", which is not installed: pip install evergreen-serving[dask]'
        ) from None
    try:
        client = Client(address, timeout=CONNECT_WITHIN_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise JobError(f"the Dask scheduler at {address} does not answer: {error}") from error
    with client:
        _check(client, address)
        there = client.scatter(folds, broadcast=True, hash=False)

        def run(
            asked: Sequence[dict[str, Any]], base: Scores | None, bar: Sequence[float], seconds: float
        ) -> Iterator[Outcome]:
            ends = time.monotonic() + seconds
            sent = [
                client.submit(_bounded, threads, there, each, base, bar, seconds, pure=False, retries=2)
                for each in asked
            ]
            try:
                for future in sent:
                    left = ends - time.monotonic()
                    try:
                        yield future.result(timeout=None if math.isinf(left) else max(left, 0.01))
                    except TimeoutError:
                        yield Outcome(late=True)
            finally:
                client.cancel(sent, force=True)

        yield run


def _check(client: Any, address: str) -> None:
    try:
        found = client.run(libraries)
    except ImportError as error:
        raise JobError(
            f"the Dask workers at {address} cannot import this program ({error}): install the same release of "
            "evergreen-serving there"
        ) from error
    if not found:
        raise JobError(f"the Dask scheduler at {address} has no worker: start `dask worker {address}`")
    own = libraries()
    for worker, theirs in found.items():
        if other := [f"{name} {theirs.get(name)}, here {version}" for name, version in own.items()
                     if theirs.get(name) != version]:  # fmt: skip
            raise JobError(f"the Dask worker {worker} has {'; '.join(other)}: a model depends on it, install the same")


def _bounded(threads: int, folds: Folds, *given: Any) -> Outcome:
    import sklearn.ensemble  # noqa: F401  (its OpenMP must be loaded to be bounded)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads):
        return evaluate(folds, *given)
