"""Which troubles of the model begin or end with a check: told once each, whoever leads by then.

Nothing is kept in memory: what was known before stands in the checks before, which every replica can read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from monitoring.evidence import State
from monitoring.store import checks

if TYPE_CHECKING:
    from monitoring.alerts import EventState
    from monitoring.drift import DriftReport
    from training.adaptations import Adaptations, Event
    from training.experts import AdaptPolicy

LOOKED_AT: Final = 1000
"""Checks before this one; what was known longer ago counts as not known."""
_LAST_ADAPTATIONS: Final = 20
"""Rows among which the two newest that a check made are looked for; the others start a version, or are a switch."""


class Told(NamedTuple):
    """What an alarm is to say."""

    event: str
    facts: Mapping[str, Any]
    state: EventState


class _Verdict(msgspec.Struct):
    state: State


class _Quality(msgspec.Struct):
    verdict: _Verdict


def quality_troubles(engine: sa.Engine, check: int, version: int, state: State, words: str) -> Iterator[Told]:
    """Quality that is lost with this check, or is no more: held again, or another version answers.

    A check that does not know changes nothing.
    """
    earlier = known_before(engine, check)
    before, known = earlier if earlier is not None else (version, None)
    if before != version:
        if known == "lost":
            yield _quality(before, f"version {version} answers now", "ended")
        known = None
    if state == "lost" and known != "lost":
        yield _quality(version, words, "began")
    elif state == "held" and known == "lost":
        yield _quality(version, words, "ended")


def _quality(version: int, words: str, state: EventState) -> Told:
    return Told("quality", {"trouble": f"quality/{version}", "version": version, "reason": words}, state)


def known_before(engine: sa.Engine, check: int) -> tuple[int, State | None] | None:
    """(version, held or lost or None) as the checks before this one knew it; None when there was none.

    The version is that of the newest of them; checks of versions before it say nothing of it.
    """
    wanted = sa.select(checks.c.version, checks.c.quality).where(checks.c.id < check)
    version: int | None = None
    with engine.connect() as connection:
        for row in connection.execute(wanted.order_by(checks.c.id.desc()).limit(LOOKED_AT)):
            version = row.version if version is None else version
            if row.version != version:
                break
            state = _state(row.quality)
            if state in ("held", "lost"):
                return version, state
    return None if version is None else (version, None)


def _state(quality: str | None) -> State | None:
    try:
        return msgspec.json.decode(quality or "", type=_Quality).verdict.state
    except msgspec.DecodeError:  # no labels then, or a check of a release that had no verdict
        return None


def adaptation_troubles(table: Adaptations, policy: AdaptPolicy) -> Iterator[Told]:
    """An adaptation that works hard since the newest check, or does no more: of its version, or of the one before.

    It works hard while the newest ones of its version, `much_for` in a row, moved its outputs by `much`.
    """
    of_checks = [event for event in table.newest_of_all(_LAST_ADAPTATIONS) if "moved" in event.record][:2]
    newest = {event.version for event in of_checks[:1] if _works_hard(table, event, policy)}
    before = {event.version for event in of_checks[1:] if _works_hard(table, event, policy)}
    for version in before - newest:
        yield _works(version, "its outputs are moved less, or another version answers", "ended")
    for version in newest - before:
        moved = of_checks[0].record["moved"]
        yield _works(
            version, f"outputs of version {version} are moved by {moved:.2g} for long: a training is due", "began"
        )


def _works_hard(table: Adaptations, newest: Event, policy: AdaptPolicy) -> bool:
    events = table.list(newest.version, policy.much_for, up_to=newest.number)
    moved = [float(event.record.get("moved", 0.0)) for event in events if event.kind == "made"]
    return len(moved) == policy.much_for and min(moved) >= policy.much


def _works(version: int, why: str, state: EventState) -> Told:
    facts = {"trouble": f"adaptation_works_hard/{version}", "version": version, "why": why}
    return Told("adaptation_works_hard", facts, state)


def drift_troubles(report: DriftReport, version: int) -> Iterator[Told]:
    """Movements of features that begin or are over with this check."""
    for state, name in (("began", "began"), ("over", "ended")):
        found = [finding for finding in report.findings if finding.state == state]
        if found:
            features = [finding.name for finding in found]
            facts = {"version": version, "features": features, "reasons": [finding.sentence for finding in found]}
            yield Told("drift", {"trouble": "drift", **facts}, name)  # type: ignore[arg-type]
