"""Is a movement new, and does it matter? What a check says of drift, given what the check before it said.

A feature that moves is news once, when it begins: it is beyond what it had to reach in `DriftPolicy.confirmations`
checks in a row, or once `far` beyond. It goes on until it is back below `calm` times that, so a score that trembles at
the edge is not told again and again (hysteresis: Schmitt trigger). What was told and went away is remembered: its
return is what its own past shows, and no news, unless it goes `RETURN` times as far.

All of this stands in the report of the check before, so a check needs that one report and nothing else.

A movement does not matter when the model does not lean on the feature (its share of the importance), or when its output
did not move. Else labels tell: when quality held on those from after it began, it does not matter; when it was lost, it
does. Until they tell, it may: the same rows come in with harmless and harmful movements. Where no labels come at all,
the model's importance and its output are all there is, and decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from monitoring.drift import OUTPUT, DriftPolicy, DriftReport, FeatureDrift, Finding
from monitoring.wording import percent

RETURN: Final = 1.5
"""Times as far as it was told that a movement must come back to be news again."""


class Labels(NamedTuple):
    """What labels say of the champion's quality."""

    held: bool | None
    """True: it surely held; False: it was lost; None: they do not tell yet. Where no labels come, give no `Labels`."""
    middle_at: float = 0.0
    """When the middle one of the rows that say so was answered, seconds since 1970 UTC."""


def told(
    report: DriftReport,
    before: DriftReport | None,
    policy: DriftPolicy,
    *,
    importance: Mapping[str, float] | None = None,
    labels: Labels | None = None,
) -> DriftReport:
    """The report with its findings.

    `before` is the report of the last check of the same version, None when there was none; `importance` the share of
    each feature, 0 to 1. A report that was skipped keeps the findings of the one before it, quieted.
    """
    known = {finding.name: finding for finding in before.findings} if before is not None else {}
    if report.skipped is not None:
        return msgspec.structs.replace(report, findings=tuple(_kept(finding) for finding in known.values()))
    output = report.prediction
    findings = []
    for drift in [*report.features, *([output] if output is not None else [])]:
        finding = _found(drift, known.get(drift.name), report, policy) if drift.counted else None
        if finding is not None:
            share = 1.0 if drift is output else None if importance is None else importance.get(drift.name, 0.0)
            matters, why = _matters(finding, share, output, policy, labels)
            finding = msgspec.structs.replace(finding, importance=share, matters=matters)
            findings.append(msgspec.structs.replace(finding, sentence=_sentence(finding, drift, why)))
    return msgspec.structs.replace(report, findings=tuple(findings))


def sentence(report: DriftReport) -> str:
    """What a check has to say of drift, in a sentence or two: what begins, or what goes on."""
    if report.skipped is not None:
        return f"drift was not computed: {report.skipped}"
    begun = [finding.sentence for finding in report.findings if finding.state in ("began", "over")]
    going = [finding for finding in report.findings if finding.state == "continues"]
    if going:
        weight = (
            "some of it matters" if any(finding.matters is not False for finding in going) else "none of it matters"
        )
        names = ", ".join(finding.name for finding in going)
        begun.append(f"moved since earlier checks: {names} ({weight})")
    return "; ".join(begun) or f"no drift: 0 of {len(report.features)} features moved beyond what their own past shows"


def _found(drift: FeatureDrift, known: Finding | None, report: DriftReport, policy: DriftPolicy) -> Finding | None:
    """What is known of the column now; None when there is nothing to say and nothing to remember."""
    times, until = drift.times, report.until_at
    if known is None:
        known = Finding(drift.name, "remembered", 0.0, 0, 0.0, 0.0, 0.0, None, None, "")
    if known.state in ("began", "continues"):
        if times >= policy.far * known.told:
            return msgspec.structs.replace(known, state="began", times=times, told=times, looked_at=until)
        state, most = ("over" if times < policy.calm else "continues"), max(known.told, times)
        return msgspec.structs.replace(known, state=state, times=times, told=most)
    if times < max(1.0, RETURN * known.told):
        if not known.told:
            return None
        return msgspec.structs.replace(known, state="remembered", times=times, looks=0)
    suspected = known.state == "suspected"
    # Of windows that share most of their rows only one counts as a look.
    another = not suspected or not until or report.middle_at >= known.looked_at
    looks = (known.looks if suspected else 0) + another
    since, looked_at = known.since if suspected else until, until if another else known.looked_at
    begins = looks >= policy.confirmations or times >= policy.far * max(1.0, known.told)
    return msgspec.structs.replace(
        known,
        state="began" if begins else "suspected",
        times=times,
        looks=looks,
        since=since,
        looked_at=looked_at,
        told=max(known.told, times) if begins else known.told,
    )


def _kept(finding: Finding) -> Finding:
    """As it was, when nothing could be measured: nothing begins, nothing ends."""
    quiet = {"began": "continues", "over": "remembered"}
    return msgspec.structs.replace(finding, state=quiet.get(finding.state, finding.state))


def _matters(
    finding: Finding, share: float | None, output: FeatureDrift | None, policy: DriftPolicy, labels: Labels | None
) -> tuple[bool | None, str]:
    """Whether it matters, and why."""
    since = labels is not None and finding.since > 0 and labels.middle_at >= finding.since
    held = labels.held if labels is not None and since else None
    leans = "" if share is None or finding.name == OUTPUT else f"{percent(share)} of the model's importance"
    if held:
        return False, "quality held on the labels since"
    if share is not None and share < policy.matters:
        return False, leans
    if held is False:
        return True, "quality was lost on the labels since"
    if finding.name != OUTPUT and output is not None and output.score is not None and output.score < policy.threshold:
        return False, f"{leans}, and its output did not move".removeprefix(", and ")
    if share is None:
        return None, "the model's importance is not known"
    leans = leans or "the model's answers are others"
    return (True, leans) if labels is None else (None, f"{leans}, and the labels since do not tell yet")


def _sentence(finding: Finding, drift: FeatureDrift, why: str) -> str:
    if finding.state == "remembered":
        return ""
    if finding.state == "over":
        return f"{finding.name} is back where it was"
    if "distribution" in drift.causes:
        measure = "its own past shows" if drift.past >= drift.threshold else "chance gives"
        how = f"moved ({drift.times:.1f} times what {measure})"
    else:
        now, before = percent(drift.missing_current), percent(drift.missing_reference)
        how = f"lacks values in {now} of the rows, {before} before"
    weight = {True: "matters", False: "does not matter", None: "may matter"}[finding.matters]
    return f"{finding.name} {how}, {weight}: {why}"
