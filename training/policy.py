"""What follows from a check: train now, or not, with every reason in numbers. Pure: same values, same decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from monitoring.drift import DriftReport
    from monitoring.quality import Quality

Trigger = Literal["manual", "quality", "drift", "schedule"]


class RetrainPolicy(BaseModel):
    """When a candidate is trained. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_drift: bool = Field(True, description="switch; features that moved are the earliest sign, before labels arrive")
    on_quality: bool = Field(True, description="switch; measured quality that fell is the surest sign")
    every_s: float = Field(
        0.0, ge=0, description="seconds since the last training; 0 = never by the clock, only when something moved"
    )
    confirmations: int = Field(
        2, ge=1, description="checks in a row that must say the same; one odd window is not worth a training"
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
    """The champion's quality on the newest labelled rows, against that on its own holdout."""

    measured: Quality
    reference: float | None = None  # the same metric on the champion's holdout; None when it has none
    lost: str | None = None  # what `monitoring.quality.fell` said: the loss in words, None when there was none


@dataclass(frozen=True, slots=True)
class History:
    """What the decision needs to know of the past."""

    last_trained_at: float | None = None  # seconds since 1970 UTC, end of the last training; None before the first
    labelled_rows: int = 0  # in the record; counted up to what the policy asks for
    new_labelled_rows: int = 0  # of these, answered after the last training's data
    crashes: int = 0  # trainings in a row, up to now, that crashed
    drift_checks: int = 0  # checks in a row, up to but without this one, that saw drift
    quality_checks: int = 0  # checks in a row, up to but without this one, that saw quality fall
    running: int | None = None  # id of the run that trains now


@dataclass(frozen=True, slots=True)
class Decision:
    """Train or not; `reasons` say why, the ones against as well as the ones for."""

    train: bool
    trigger: Trigger | None  # what asked for it, also when something stood against it
    reasons: tuple[str, ...]

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
    if not wanted:
        return Decision(False, None, seen)
    against = _objections(history, now, policy, manual)
    return Decision(not against, wanted, seen + against)


def cooldown_s(history: History, policy: RetrainPolicy) -> float:
    """Seconds that must pass after the last training: doubled for each crash in a row, up to `max_cooldown_s`."""
    doubled = policy.cooldown_s * 2.0 ** min(history.crashes, 32)
    return min(doubled, max(policy.cooldown_s, policy.max_cooldown_s))


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
        times, now_is = history.quality_checks + 1, quality.measured
        if quality.lost is not None and not policy.on_quality:
            seen.append(f"{quality.lost}, but on_quality is off")
        elif quality.lost is not None and times < policy.confirmations:
            seen.append(f"{quality.lost}, in {times} of {policy.confirmations} checks in a row")
        elif quality.lost is not None:
            seen.append(quality.lost)
            wishes.append("quality")
        elif not now_is.usable or now_is.value is None:
            seen.append(f"quality was not measured: {now_is.note or f'{now_is.rows} labelled rows'}")
        elif quality.reference is None:
            seen.append(f"{now_is.metric} {now_is.value:.4g} on {now_is.rows} rows, nothing to compare it with")
        else:
            against = f"{quality.reference:.4g} on the champion's holdout"
            seen.append(f"quality held: {now_is.metric} {now_is.value:.4g} on {now_is.rows} rows, {against}")

    if drift is not None:
        times = history.drift_checks + 1
        found = "; ".join(drift.reasons)
        if drift.skipped is not None:
            seen.append(f"drift was not computed: {drift.skipped}")
        elif not drift.detected:
            seen.append(f"no drift: {len(drift.drifted)} of {len(drift.features)} features moved")
        elif not policy.on_drift:
            seen.append(f"{found}, but on_drift is off")
        elif times < policy.confirmations:
            seen.append(f"{found}, in {times} of {policy.confirmations} checks in a row")
        else:
            seen.append(found)
            wishes.append("drift")

    if policy.every_s > 0:
        due_s = 0.0 if history.last_trained_at is None else policy.every_s - _elapsed(history.last_trained_at, now)
        if due_s <= 0:
            seen.append(f"schedule: trained every {policy.every_s:g} s, it is time")
            wishes.append("schedule")
        else:
            seen.append(f"schedule: {due_s:.0f} s left of {policy.every_s:g} s")
    return (wishes[0] if wishes else None), tuple(seen) or ("nothing was looked at",)


def _objections(history: History, now: float, policy: RetrainPolicy, manual: bool) -> tuple[str, ...]:
    against: list[str] = []
    if history.running is not None:
        against.append(f"run {history.running} is under way")
    if history.labelled_rows < policy.min_labelled_rows:
        against.append(f"{history.labelled_rows} labelled rows, {policy.min_labelled_rows} needed")
    if manual:
        return tuple(against)
    if history.last_trained_at is not None:
        if history.new_labelled_rows < policy.min_new_labelled_rows:
            against.append(
                f"{history.new_labelled_rows} labelled rows since the last training, "
                f"{policy.min_new_labelled_rows} needed"
            )
        cooldown = cooldown_s(history, policy)
        left = cooldown - _elapsed(history.last_trained_at, now)
        if left > 0:
            crashed = f" (doubled by {history.crashes} crashed trainings in a row)" if history.crashes else ""
            against.append(f"cool-down: {left:.0f} s left of {cooldown:g} s{crashed}")
    return tuple(against)


def _elapsed(since: float, now: float) -> float:
    return max(0.0, now - since)  # a clock set back must not make a wait longer than it is
