"""How many matured rows a champion has answered in all: the evidence on its quality counts its windows by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from monitoring.answers import count_labelled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from training.loop import Loop

_UNBOUNDED: Final = 2**31


def ever_answered(
    loop: Loop, champion: int, at: npt.NDArray[np.float64], until: float, all_below: int
) -> tuple[int, float]:
    """How many matured rows with a label this champion answered in all, and before when (seconds since 1970 UTC).

    `at` is when the newest of them were answered, oldest first; fewer than `all_below` of them are all there are. Else
    the count goes on from what the last check said: windows of the evidence begin at fixed places of it.
    """
    rows = len(at)
    if rows < all_below:
        return rows, until
    counted, since = 0, None
    for last in loop.runs.checks(limit=1, version=champion):
        known = last.quality or {}
        counted, since = known.get("answered", 0), known.get("until")
    if since is not None and until <= since:
        return counted, since
    new = int((at >= (since or 0.0)).sum())
    if new == rows:  # more came since than were read
        new += count_labelled(
            loop.engine,
            most=_UNBOUNDED,
            since=since,
            until=float(at[0]),
            version=champion,
            sources=loop.gates.label_sources,
        )
    return counted + new, until
