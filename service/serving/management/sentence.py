"""How a deployment stands, in sentences that a manager understands. Pure: the same facts, the same words."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo
from typing import Final, Literal

import msgspec

from monitoring.wording import metric_name, percent

AlertKind = Literal["worker", "adaptation", "store", "record", "run", "drift", "replica", "doubt"]
"""What an alert is about; `doubt` is of the gates."""


class Alert(msgspec.Struct, frozen=True):
    """What a person should look at, in one sentence."""

    text: str
    kind: AlertKind
    run: int | None = None
    """Whose record says more."""

    def __str__(self) -> str:
        return self.text if self.run is None else f"{self.text} (run {self.run})"


class KnownQuality(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest check knows of the champion's answers, served as they were."""

    state: str = "not known yet"
    """held, lost or not known yet: against the champion's own holdout."""
    metric: str = ""
    value: float | None = None
    """The metric on the newest matured rows; None when these are too few, or do not define it."""
    low: float | None = None
    high: float | None = None
    """`value` lies between them with 95 %: what chance does to that many rows."""
    rows: int = 0
    """Matured rows with a label that it was measured on."""
    holdout: float | None = None
    """The metric on the champion's own holdout: what was promised."""
    why: str = ""
    """The state in one sentence with its numbers."""


class Next(msgspec.Struct, frozen=True):
    """What happens next by itself."""

    what: str
    at: float | None = None
    """Seconds since 1970 UTC; None: when something else is over, or never."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that the sentence is made of; times are seconds since 1970 UTC."""

    version: int | None = None
    why_none: str = ""
    """Why no version is in service."""
    served_since: float | None = None
    quality: KnownQuality | None = None
    """None: no check of this version yet."""
    coverage: float | None = None
    """Share of the rows old enough for their label that have it; None when no row is."""
    delay_s: float | None = None
    """After so many seconds a row is judged by its label; None before the first check."""
    next: Next = Next("the first check")
    paused: str | None = None
    """Who paused the loop and why; None: it runs."""
    doubts: tuple[str, ...] = ()
    """What the gates had against the version in service."""
    alerts: tuple[Alert, ...] = ()
    """What a person should look at, without the doubts."""

    @property
    def needs(self) -> tuple[Alert, ...]:
        """All that a person should look at, the doubts last."""
        doubts = (Alert(f"the gates doubt this version: {doubt}", "doubt") for doubt in self.doubts)
        return (*self.alerts, *doubts)


FEW_LABELS: Final = 0.9
"""Share of labels below which it is said how many are there: what is known rests on a part of the rows."""
SECONDS: Final = ((86_400.0, "day", "days"), (3600.0, "h", "h"), (60.0, "min", "min"))


def sentence(standing: Standing, now: float, zone: tzinfo | None = None) -> str:
    """What serves, since when, how good it is, how it knows, and what happens next; then what needs a look.

    `zone` is that of the times named; None is the zone of this machine.
    """
    parts = [_serving(standing, now, zone), _ahead(standing, now, zone)]
    if needs := standing.needs:
        more = f" (and {len(needs) - 1} more)" if len(needs) > 1 else ""
        first = str(needs[0]).rstrip(".")
        parts.append(f"Needs a look: {first}{more}" + ("" if first.endswith("?") and not more else "."))
    return " ".join(parts)


def moment(at: float, now: float, zone: tzinfo | None = None, *, named: bool = True) -> str:
    """`10:05 UTC` of today, `26 Nov 10:05 UTC` of another day, with the year of another year.

    Not `named`, the zone is left out.
    """
    when, today = (datetime.fromtimestamp(each).astimezone(zone) for each in (at, now))
    clock = f"{when:%H:%M %Z}" if named else f"{when:%H:%M}"
    if when.date() == today.date():
        return clock
    year = "" if when.year == today.year else f" {when.year}"
    return f"{when.day} {when:%b}{year} {clock}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`, `2 days`, rounded."""
    for size, one, many in SECONDS:
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {one if count == 1 else many}"
    return f"{seconds:.0f} s"


def _serving(standing: Standing, now: float, zone: tzinfo | None) -> str:
    if standing.version is None:
        return f"No version answers yet: {standing.why_none or 'none was trained'}."
    since = "" if standing.served_since is None else f" since {moment(standing.served_since, now, zone)}"
    return f"Version {standing.version} answers{since}; {_quality(standing.quality)}{_labels(standing)}."


def _quality(known: KnownQuality | None) -> str:
    if known is None:
        return "quality not known yet: no check has looked at it"
    if known.value is None:
        return f"quality not known yet: {known.why or 'no row was judged by a label'}"
    half = 0.0 if known.high is None or known.low is None else (known.high - known.low) / 2
    # As many decimals as two digits of what chance does: more of them say nothing.
    form = f",.{max(0, 1 - math.floor(math.log10(half)))}f" if half > 0 else ",.3g"
    chance = f" ± {half:{form}}" if half > 0 else ""
    promised = "" if known.holdout is None else f", {known.holdout:{form}} on its holdout"
    found = f"{metric_name(known.metric)} {known.value:{form}}{chance} on {known.rows:,} labelled rows"
    return f"quality {known.state}: {found}{promised}"


def _labels(standing: Standing) -> str:
    """What is missing of the labels; nothing while most rows have theirs."""
    if standing.delay_s is None:
        return ""
    older = f" older than {duration(standing.delay_s)}" if standing.delay_s >= 0.5 else ""
    if standing.coverage is None:
        return f"; no row is{older} yet, when its label is due" if older else ""
    if standing.coverage >= FEW_LABELS:
        return ""
    return f"; {percent(standing.coverage)} of the rows{older} have their label"


def _ahead(standing: Standing, now: float, zone: tzinfo | None) -> str:
    if standing.paused is not None:
        why = f" ({standing.paused})" if standing.paused else ""
        return f"The loop is paused{why}: nothing is checked or trained until it is resumed."
    at, when = standing.next.at, ""
    if at is not None:
        when = f" {'at' if at >= now else 'due since'} {moment(at, now, zone)}"
    return f"Next{when}: {standing.next.what}."
