"""A replay as one HTML page that opens from disk: no network, no script; light and dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from monitoring.wording import metric_name
from service.replay.chart import comparison_chart, quality_chart, weights_chart, weights_legend

if TYPE_CHECKING:
    from service.replay.run import Turn
    from service.replay.scores import Scores
    from service.replay.study import PolicyResult, Study

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f6f3; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --faint: #898781; --rule: #e1e0d9;
  --blue: #2a78d6; --orange: #eb6834; --aqua: #1baf7a; --yellow: #eda100; --violet: #4a3aa7; --red: #d03b3b;
  --green: #0ca30c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111110; --card: #1a1a19; --ink: #ffffff; --soft: #c3c2b7; --faint: #898781; --rule: #2c2c2a;
    --blue: #3987e5; --orange: #d95926; --aqua: #199e70; --yellow: #c98500; --violet: #9085e9; --red: #e66767;
    --green: #2fbf2f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 40px 0 4px; }
h3 { font-size: 15px; margin: 0; }
p { margin: 6px 0; color: var(--soft); max-width: 78ch; }
.card, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
.card { padding: 18px 20px; margin: 16px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 22px 0; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 27px; font-weight: 600; letter-spacing: -.02em; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; display: block; }
.scroll, .picture { overflow-x: auto; }
.picture svg { display: block; width: 100%; min-width: 680px; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule); }
th { font-weight: 500; color: var(--faint); }
td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
td.best { font-weight: 650; }
tr.loop td:first-child { font-weight: 650; }
.legend { font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--soft); }
td.why { text-align: left; color: var(--soft); min-width: 320px; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .tick { fill: var(--faint); font-size: 11px; }
svg .faint { font-size: 10.5px; }
svg .end { font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.served { stroke: var(--blue); } text.served { fill: var(--blue); stroke: none; }
.raw { stroke: var(--orange); } text.raw { fill: var(--orange); stroke: none; }
.equal { stroke: var(--soft); } text.equal { fill: var(--soft); stroke: none; }
.never { stroke: var(--faint); } text.never { fill: var(--faint); stroke: none; }
.series0 { stroke: var(--blue); } text.series0 { fill: var(--blue); stroke: none; }
.series1 { stroke: var(--orange); } text.series1 { fill: var(--orange); stroke: none; }
.series2 { stroke: var(--aqua); } text.series2 { fill: var(--aqua); stroke: none; }
.series3 { stroke: var(--yellow); } text.series3 { fill: var(--yellow); stroke: none; }
.series4 { stroke: var(--violet); } text.series4 { fill: var(--violet); stroke: none; }
.series5 { stroke: var(--red); } text.series5 { fill: var(--red); stroke: none; }
.equal { stroke-width: 1.5; stroke-dasharray: 5 3; }
.never { stroke-width: 1.5; stroke-dasharray: 1.5 4; }
.band { fill: var(--blue); opacity: .14; }
.hit { fill: transparent; } .hit:hover { fill: var(--ink); fill-opacity: .25; }
.promotion { stroke: var(--green); stroke-width: 1; opacity: .45; }
.promoted { fill: var(--green); }
.refused { fill: none; stroke: var(--red); stroke-width: 2; stroke-linecap: round; }
.held { fill: var(--green); opacity: .55; } .lost { fill: var(--red); }
.not-known-yet { fill: none; stroke: var(--faint); stroke-width: .8; }
.news { fill: var(--yellow); }
.expert { stroke: var(--card); stroke-width: .8; }
.family0 { fill: var(--faint); opacity: .55; } .family1 { fill: var(--aqua); } .family2 { fill: var(--violet); }
.family3 { fill: var(--orange); } .family4 { fill: var(--yellow); } .family5 { fill: var(--blue); }
.shade1 { fill-opacity: .45; } .shade2 { fill-opacity: .7; } .shade3 { fill-opacity: 1; }
"""


def page(study: Study) -> str:
    """The whole page."""
    name = PurePath(study.data).name
    notes = "".join(f"<p>{escape(note)}</p>" for note in study.notes)
    sections = "".join(_policy(study, policy) for policy in study.policies)
    together = ""
    if len(study.policies) > 1:
        together = f'<h2>The policies side by side</h2><div class="card">{comparison_chart(study)}</div>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Replay of {escape(name)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"<h1>Replay of {escape(name)}</h1>\n<p>{_facts(study)}</p>{notes}\n"
        f'{_tiles(study)}\n<div class="card scroll">{_table(study)}</div>\n{together}\n{sections}\n'
        "</main></body></html>\n"
    )


def _facts(study: Study) -> str:
    return (
        f"The first {study.start_rows:,} rows trained version 1; the loop then lived through {study.rows:,} rows on a "
        f"simulated clock. It predicts “{escape(study.target)}” ({study.task}). Labels came "
        f"{escape(study.label_delay)}, and every {study.every:,} rows there was a check. Each number is of answers "
        "that were given before their label was known."
    )


def _tiles(study: Study) -> str:
    policy = study.policies[0]
    equal = study.schedule(policy.trainings)
    metric, loss = metric_name(study.metric), metric_name(study.loss)
    against = "with as many trainings by rows" if policy.trainings else "without any training"
    tiles = [
        (_number(policy.served.metric), f"{metric} served; {_number(equal.scores.metric)} {against}"),
        (_number(policy.served.loss), f"{loss} served; {_number(equal.scores.loss)} {against}"),
    ]
    if policy.served.calibration is not None:
        other = _number(equal.scores.calibration)
        tiles.append((_number(policy.served.calibration), f"calibration error served; {other} {against}"))
    tiles.append((str(policy.trainings), f"trainings: {policy.promoted} promoted, {policy.refused} refused"))
    inner = "".join(f'<div class="tile"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in tiles)
    return f'<div class="tiles">{inner}</div>'


def _table(study: Study) -> str:
    rows: list[tuple[str, str, Scores, Sequence[object]]] = []
    for policy in study.policies:
        done = (policy.trainings, policy.promoted, f"{policy.seconds:.1f}")
        rows.append(("loop", f"{policy.name}, served", policy.served, done))
        rows.append(("", f"{policy.name}, raw output", policy.raw, ("", "", "")))
    rows += [("", each.name, each.scores, (each.trainings, "", f"{each.seconds:.1f}")) for each in study.schedules]
    best = [
        max((s.metric for _, _, s, _ in rows if s.metric is not None), default=None),
        min((s.loss for _, _, s, _ in rows if s.loss is not None), default=None),
        min((s.calibration for _, _, s, _ in rows if s.calibration is not None), default=None),
    ]
    measured = [metric_name(study.metric), metric_name(study.loss), "calibration error"]
    if study.task == "regression":
        measured, best = measured[:2], best[:2]
    heads = ("", *measured, "trainings", "promoted", "seconds")
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = ""
    for style, name, scores, counts in rows:
        cells = "".join(
            f"<td{' class=best' if value is not None and value == top else ''}>{_number(value)}</td>"
            for value, top in zip((scores.metric, scores.loss, scores.calibration), best, strict=False)
        )
        cells += "".join(f"<td>{count}</td>" for count in counts)
        body += f'<tr class="{style}"><td>{escape(name)}</td>{cells}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _policy(study: Study, policy: PolicyResult) -> str:
    checks = ", ".join(f"{verdict} in {count}" for verdict, count in policy.checks.items())
    failed = f", {policy.failed} failed" if policy.failed else ""
    adapted = any(turn.weights for turn in policy.turns)
    weights = ""
    if adapted:
        weights = (
            '<div class="card"><h3>Who gives the answer</h3><p>The weight of each expert after each check. “identity” '
            "is the champion's own output; the others correct it, and gain weight where that was better.</p>"
            f"{weights_chart(study, policy.turns)}{weights_legend(policy.turns)}</div>"
        )
    return (
        f"<h2>{escape(policy.name)}</h2>"
        f"<p>{sum(policy.checks.values())} checks. Quality: {checks}. Drift news in {policy.drift_news}. "
        f"{policy.trainings} trainings: {policy.promoted} promoted, {policy.refused} refused{failed}.</p>"
        f'<div class="card"><h3>Quality over time</h3><p>{metric_name(study.metric)} of consecutive rows, with the '
        "95% interval that chance gives what was served. A green line is a new version; ▲ a training that was "
        "promoted, ✕ one that was not. A tall red bar is a check that said “lost”, an empty one could not tell yet.</p>"
        f"{quality_chart(study, policy)}</div>{weights}{_decisions(policy.turns)}"
    )


def _decisions(turns: Sequence[Turn]) -> str:
    rows = "".join(
        f"<tr><td>{turn.row:,}</td><td>{turn.version}</td><td>{escape(turn.verdict)}</td>"
        f"<td>{escape(turn.outcome.replace('_', ' '))}</td><td class=why>{escape(turn.why)}</td></tr>"
        for turn in turns
    )
    head = "<tr><th>row</th><th>version</th><th>quality</th><th>outcome</th><th>why</th></tr>"
    return (
        f'<details class="card"><summary>All {len(turns)} decisions, with their reasons</summary>'
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div></details>'
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
