"""What follows from a check: train now, or not, with every reason in numbers. Pure: same values, same decision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from monitoring.news import sentence
from monitoring.wording import percent

if TYPE_CHECKING:
    from monitoring.drift import DriftReport
    from monitoring.quality import Quality
    from monitoring.verdict import QualityVerdict

Trigger = Literal["manual", "quality", "growth", "schedule", "drift"]
"""What can ask for a training, the strongest first."""

ALONE: Final = "drift alone trains nothing (on_drift is off)"
"""Ends the sentence of a check at which drift began."""
LONGER: Final = 1.5
"""Each refused training in a row multiplies the growth that the next one waits for."""
LONGEST: Final = 4.0
"""Refusals multiply it by no more than this."""


class RetrainPolicy(BaseModel):
    """When a candidate is trained. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    growth: float = Field(
        0.2,
        ge=0,
        description="share; labelled rows since the last training over the rows of that training that make one due. "
        "Each refused training in a row makes it 1.5 times as much, up to 4 times; 0 = never by growth",
    )
    on_quality: bool = Field(True, description="switch; lost quality of what was answered makes a training due")
    growth_if_lost: float = Field(
        0.1,
        ge=0,
        description="share; as growth, and enough once quality is lost: fewer new rows hardly change what is learned",
    )
    on_drift: bool = Field(
        False,
        description="switch; whether drift alone trains. Real streams nearly always drift, and gain nothing by it",
    )
    confirmations: int = Field(
        2, ge=1, description="checks in a row that must see drift before it trains; one odd window is not worth it"
    )
    every_s: float = Field(
        0.0, ge=0, description="seconds since the last training that make one due, whatever the rows; 0 = never by age"
    )
    cooldown_s: float = Field(
        300.0, ge=0, description="seconds after a training ended; its effect must show before the next one is judged"
    )
    max_cooldown_s: float = Field(
        21_600.0, ge=0, description="seconds; the cool-down doubles with each crashed training in a row, up to this"
    )
    min_labelled_rows: int = Field(
        500, ge=1, description="labelled rows in the record; fewer leave too small a holdout to tell two models apart"
    )
    min_new_labelled_rows: int = Field(
        200, ge=0, description="labelled rows answered since the last training; without new rows it learns nothing new"
    )


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """What is known of the champion's quality on the rows that it answered."""

    measured: Quality  # on the newest of them, in numbers
    verdict: QualityVerdict  # on all of them: held, lost or not known yet
    answered: int = 0  # matured rows with a label that it ever answered,
    until: float = 0.0  # before this moment (seconds since 1970 UTC)
    raw: QualityVerdict | None = None  # of the champion's own output; None where it was not adapted


@dataclass(frozen=True, slots=True)
class History:
    """What the decision needs to know of the past. Rows are matured ones; they are counted up to what is asked for."""

    last_trained_at: float | None = None  # seconds since 1970 UTC, end of the last training; None before the first
    trained_rows: int = 0  # that the last training which did not crash was given
    labelled_rows: int = 0  # in the record
    new_labelled_rows: int = 0  # of these, answered after that training's data
    refusals: int = 0  # trainings in a row, up to now, whose candidate was not promoted
    crashes: int = 0  # trainings in a row, up to now, that crashed
    drift_checks: int = 0  # checks in a row, up to but without this one, that saw drift
    running: int | None = None  # id of the run that trains now


@dataclass(frozen=True, slots=True)
class Ahead:
    """What would make a training due, in numbers."""

    new_rows: int = 0  # labelled rows since the last training, counted up to what is asked for
    rows_due: int | None = None  # so many of them make one due; None: never by rows
    due_at: float | None = None  # seconds since 1970 UTC, when one is due by age; None: never
    not_before: float | None = None  # seconds since 1970 UTC, when the cool-down ends; None: there is none


@dataclass(frozen=True, slots=True)
class Decision:
    """Train or not; `reasons` say why, the ones against as well as the ones for."""

    train: bool
    trigger: Trigger | None  # what asked for it, also when something stood against it
    reasons: tuple[str, ...]
    due: bool = False  # promoted unless it is probably worse; False: somebody hoped, it must be probably better
    ahead: Ahead = Ahead()

    @property
    def why(self) -> str:
        """The reasons as one line."""
        return "; ".join(self.reasons)


def decide(
    drift: DriftReport | None,
    quality: QualityCheck | None,
    history: History,
    now: float,
    policy: RetrainPolicy,
    *,
    manual: bool = False,
) -> Decision:
    """Whether to train at `now` (seconds since 1970 UTC).

    A person asking (`manual`) gets past the cool-down and the rows since the last training, not past the rows that the
    holdout needs nor past a training under way. `drift` and `quality` are None when they were not looked at.
    """
    wanted, seen = _wishes(drift, quality, history, now, policy, manual)
    ahead = _ahead(quality, history, policy)
    if not wanted:
        return Decision(False, None, seen, ahead=ahead)
    against = _objections(history, now, policy, manual)
    return Decision(not against, wanted, seen + against, due=wanted != "drift", ahead=ahead)


def cooldown_s(history: History, policy: RetrainPolicy) -> float:
    """Seconds that must pass after the last training: doubled for each crash in a row, up to `max_cooldown_s`."""
    doubled = policy.cooldown_s * 2.0 ** min(history.crashes, 32)
    return min(doubled, max(policy.cooldown_s, policy.max_cooldown_s))


def growth_needed(share: float, trained_rows: int, refusals: int) -> int:
    """Labelled rows since the last training that are a growth of `share`, more after each refusal in a row."""
    return max(1, math.ceil(round(share * _patience(refusals) * trained_rows, 6)))


def _patience(refusals: int) -> float:
    return min(LONGER ** min(refusals, 32), LONGEST)


def _ahead(quality: QualityCheck | None, history: History, policy: RetrainPolicy) -> Ahead:
    lost = policy.on_quality and quality is not None and quality.verdict.state == "lost"
    shares = [policy.growth] if policy.growth > 0 else []
    shares += [policy.growth_if_lost] if lost else []
    rows_due = None
    if shares:
        enough = min(growth_needed(share, history.trained_rows, history.refusals) for share in shares)
        missing = policy.min_labelled_rows - history.labelled_rows  # of the record, whatever was trained before
        before = 0 if history.last_trained_at is None else policy.min_new_labelled_rows
        rows_due = max(enough, before, history.new_labelled_rows + missing if missing > 0 else 0)
    last = history.last_trained_at
    return Ahead(
        new_rows=history.new_labelled_rows,
        rows_due=rows_due,
        due_at=None if last is None or policy.every_s <= 0 else last + policy.every_s,
        not_before=None if last is None else last + cooldown_s(history, policy),
    )


def _wishes(
    drift: DriftReport | None,
    quality: QualityCheck | None,
    history: History,
    now: float,
    policy: RetrainPolicy,
    manual: bool,
) -> tuple[Trigger | None, tuple[str, ...]]:
    """The strongest trigger, and what each of them saw."""
    wishes: list[Trigger] = ["manual"] if manual else []
    seen: list[str] = ["a person asked"] if manual else []

    if quality is not None:
        seen.append(quality.verdict.words)
        if quality.verdict.state == "lost" and not policy.on_quality:
            seen[-1] += ", but on_quality is off"
        elif quality.verdict.state == "lost":
            enough, said = _growth("quality", policy.growth_if_lost, history)
            if enough:
                wishes.append("quality")
            else:
                seen.append(said)

    if policy.growth > 0:
        enough, said = _growth("growth", policy.growth, history)
        seen.append(said)
        if enough:
            wishes.append("growth")

    if policy.every_s > 0:
        due_s = 0.0 if history.last_trained_at is None else policy.every_s - _elapsed(history.last_trained_at, now)
        if due_s <= 0:
            seen.append(f"schedule: trained every {policy.every_s:g} s, it is time")
            wishes.append("schedule")
        else:
            seen.append(f"schedule: {due_s:.0f} s left of {policy.every_s:g} s")

    if drift is not None:
        times = history.drift_checks + 1
        if policy.on_drift and drift.skipped is None and drift.detected:
            seen.append(f"{'; '.join(drift.reasons)}, in {times} of {policy.confirmations} checks in a row")
            if times >= policy.confirmations:
                wishes.append("drift")
        else:
            seen.append(sentence(drift) + (f"; {ALONE}" if drift.news else ""))
    return (wishes[0] if wishes else None), tuple(seen) or ("nothing was looked at",)


def _growth(name: str, share: float, history: History) -> tuple[bool, str]:
    """Whether enough labelled rows came since the last training, and the sentence that says so."""
    needed = growth_needed(share, history.trained_rows, history.refusals)
    part = f"{percent(share * _patience(history.refusals))} of {history.trained_rows:,}"
    if history.refusals:
        times = "the last training was" if history.refusals == 1 else f"the last {history.refusals} trainings were"
        part += f", more than {percent(share)} as {times} refused"
    if history.new_labelled_rows >= needed:
        return (
            True,
            f"{name}: the {needed:,} labelled rows since the last training that make one due are there ({part})",
        )
    return False, (
        f"{name}: {history.new_labelled_rows:,} labelled rows since the last training, {needed:,} make one due ({part})"
    )


def _objections(history: History, now: float, policy: RetrainPolicy, manual: bool) -> tuple[str, ...]:
    against: list[str] = []
    if history.running is not None:
        against.append(f"run {history.running} is under way")
    if history.labelled_rows < policy.min_labelled_rows:
        against.append(f"{history.labelled_rows:,} labelled rows, {policy.min_labelled_rows:,} needed")
    if manual:
        return tuple(against)
    if history.last_trained_at is not None:
        if history.new_labelled_rows < policy.min_new_labelled_rows:
            against.append(
                f"{history.new_labelled_rows:,} labelled rows since the last training, "
                f"{policy.min_new_labelled_rows:,} needed"
            )
        cooldown = cooldown_s(history, policy)
        left = cooldown - _elapsed(history.last_trained_at, now)
        if left > 0:
            crashed = f" (doubled by {history.crashes} crashed trainings in a row)" if history.crashes else ""
            against.append(f"cool-down: {left:.0f} s left of {cooldown:g} s{crashed}")
    return tuple(against)


def _elapsed(since: float, now: float) -> float:
    return max(0.0, now - since)  # a clock set back must not make a wait longer than it is
