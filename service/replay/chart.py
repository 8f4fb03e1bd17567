"""The pictures of a replay as inline SVG: quality over time with its interval, what the loop did, experts' weights.

Colours and fonts are classes of the page's style sheet (`service/replay/page.py`). Each mark has its numbers as title.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from monitoring.wording import metric_name, percent

if TYPE_CHECKING:
    from service.replay.run import Turn
    from service.replay.scores import Stretch
    from service.replay.study import PolicyResult, Study

WIDTH: Final = 960
LEFT: Final = 96
RIGHT: Final = 128
TOP: Final = 26
PLOT: Final = WIDTH - LEFT - RIGHT
HEIGHT: Final = 270
LANE: Final = 24
WEIGHTS_HEIGHT: Final = 150
LONG_S: Final = 200 * 86_400.0
"""A stream that lasts longer shows months, a shorter one days."""
FAMILIES: Final = ("identity", "shift", "scale", "residual", "residuals")

Line = tuple[str, str, Sequence["Stretch"]]
"""Style class, name, values."""


def quality_chart(study: Study, policy: PolicyResult) -> str:
    """Served beside raw and the schedules, and below them what each check said and each training led to."""
    adapted = any(turn.adaptation is not None for turn in policy.turns)
    equal, never = study.schedule(policy.trainings), study.schedule(0)
    lines: list[Line] = [("never", "never trained", never.over_time)]
    if policy.trainings:
        lines.append(("equal", "as often, by rows", equal.over_time))
    if adapted:
        lines.append(("raw", "raw output", policy.raw_over_time))
    lines.append(("served", "served", policy.served_over_time))
    bottom = TOP + HEIGHT
    x, y, parts = _frame(study, lines)
    height = bottom + 3 * LANE + 44
    parts += [_promotion(turn, x, bottom + 3 * LANE) for turn in policy.turns if turn.champion != turn.version]
    parts += ['<g clip-path="url(#plot)">', _band(policy.served_over_time, x, y)]
    parts += [_path(line, x, y) for line in lines]
    parts += ["</g>", *_ends(lines, y)]
    parts += _lanes(policy, x, bottom + 8, study.every)
    parts += _rows_axis(study, x, height - 40)
    return _svg(height, f"{metric_name(study.metric)} over time under {policy.name}", parts)


def comparison_chart(study: Study) -> str:
    """What each policy served, in one picture."""
    lines: list[Line] = [("never", "never trained", study.schedule(0).over_time)]
    lines += [(f"series{at % 6}", each.name, each.served_over_time) for at, each in enumerate(study.policies)]
    x, y, parts = _frame(study, lines)
    parts += ['<g clip-path="url(#plot)">', *(_path(line, x, y) for line in lines), "</g>", *_ends(lines, y)]
    parts += _rows_axis(study, x, TOP + HEIGHT + 4)
    return _svg(TOP + HEIGHT + 44, f"{metric_name(study.metric)} over time under each policy", parts)


def weights_chart(study: Study, turns: Sequence[Turn]) -> str:
    """How much of the answer each expert gives after each check, stacked to 1; the identity is the unchanged output."""
    names = _experts(turns)
    x, bottom = _scale(0, study.rows), TOP + WEIGHTS_HEIGHT
    shares = [_shares(turn, names) for turn in turns]
    edges = [*(turn.row for turn in turns), study.rows]
    below = [0.0] * len(turns)
    parts = [
        f'<text class="tick" x="{LEFT - 8}" y="{bottom - WEIGHTS_HEIGHT * share + 4:.1f}" text-anchor="end">'
        f"{percent(share)}</text>"
        for share in (0, 0.5, 1)
    ]
    for name in names:
        above = [low + share[name] for low, share in zip(below, shares, strict=True)]
        steps = [(x(a), x(b), low, high) for (a, b), low, high in zip(pairwise(edges), below, above, strict=True)]
        over = [f"{a:.1f},{_up(high, bottom)} {b:.1f},{_up(high, bottom)}" for a, b, _, high in steps]
        under = [f"{b:.1f},{_up(low, bottom)} {a:.1f},{_up(low, bottom)}" for a, b, low, _ in reversed(steps)]
        mean = sum(share[name] for share in shares) / max(len(shares), 1)
        told = escape(f"{name}: {percent(mean)} on average, {percent(shares[-1][name])} at the end")
        title = f"<title>{told}</title>"
        parts.append(f'<polygon class="{_colour(name, names)}" points="{" ".join([*over, *under])}">{title}</polygon>')
        below = above
    parts += _rows_axis(study, x, bottom + 4)
    return _svg(bottom + 44, "Weights of the experts over time", parts)


def weights_legend(turns: Iterable[Turn]) -> str:
    """The experts' names beside their colours."""
    names = _experts(turns)
    keys = (
        f'<span><svg width="12" height="12"><rect class="{_colour(name, names)}" width="12" height="12" rx="3"/></svg>'
        f"{escape(name)}</span>"
        for name in names
    )
    return f'<p class="legend">{"".join(keys)}</p>'


# -- the parts -----------------------------------------------------------------------------------------------------


def _frame(study: Study, lines: Sequence[Line]) -> tuple[Callable[[float], float], Callable[[float], float], list[str]]:
    """The scales of both axes, and the horizontal grid."""
    low, high = _range(lines)
    x, ticks = _scale(0, study.rows), _ticks(low, high)
    right = LEFT + PLOT

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    parts = [
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP - 2}" width="{PLOT}" height="{HEIGHT + 4}"/></clipPath>',
        f'<text class="axis" x="{LEFT - 8}" y="{TOP - 12}" text-anchor="end">{metric_name(study.metric)}</text>',
    ]
    for tick in ticks:
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>')
    return x, y, parts


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """From the lowest to the highest value. The few worst stretches may leave the picture: they would fill it."""
    values = sorted(each.value for _, _, line in lines for each in line if each.value is not None)
    if not values:
        return 0.0, 1.0
    low, high = values[round(0.03 * (len(values) - 1))], values[-1]
    room = (high - low or 0.1) * 0.06
    return low - room, min(high + room, max(1.0, high))


def _band(line: Sequence[Stretch], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    known = [(x(_middle(s)), y(s.low), y(s.high)) for s in line if s.low is not None and s.high is not None]
    if len(known) < 2:
        return ""
    over = " ".join(f"{at:.1f},{high:.1f}" for at, _, high in known)
    under = " ".join(f"{at:.1f},{low:.1f}" for at, low, _ in reversed(known))
    return f'<polygon class="band" points="{over} {under}"><title>95% interval of what was served</title></polygon>'


def _path(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    style, name, stretches = line
    known = [each for each in stretches if each.value is not None]
    points = " ".join(f"{x(_middle(s)):.1f},{y(s.value):.1f}" for s in known if s.value is not None)
    dots = "".join(
        f'<circle class="hit" cx="{x(_middle(s)):.1f}" cy="{y(s.value):.1f}" r="7"><title>{escape(name)}, rows '
        f"{s.start:,} to {s.stop:,}: {s.value:.4f}{_interval(s)}</title></circle>"
        for s in known
        if s.value is not None
    )
    return f'<polyline class="line {style}" points="{points}"/>{dots}'


def _interval(stretch: Stretch) -> str:
    return "" if stretch.low is None or stretch.high is None else f" ({stretch.low:.3f} to {stretch.high:.3f})"


def _ends(lines: Sequence[Line], y: Callable[[float], float]) -> list[str]:
    """The name of each line at its right end, none upon another."""
    placed: list[tuple[float, str, str]] = []
    for style, name, stretches in lines:
        last = next((s.value for s in reversed(stretches) if s.value is not None), None)
        if last is not None:
            placed.append((min(max(y(last), TOP), TOP + HEIGHT), style, name))
    placed.sort()
    heights: list[float] = []
    for height, _, _ in placed:
        heights.append(max(height, heights[-1] + 15) if heights else height)
    too_low = max(0.0, (heights[-1] if heights else 0.0) - TOP - HEIGHT)
    return [
        f'<text class="end {style}" x="{LEFT + PLOT + 8}" y="{height - too_low + 4:.1f}">{escape(name)}</text>'
        for height, (_, style, name) in zip(heights, placed, strict=True)
    ]


def _promotion(turn: Turn, x: Callable[[float], float], bottom: float) -> str:
    at = x(turn.row)
    return (
        f'<line class="promotion" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{bottom:.1f}"/>'
        f'<text class="tick" x="{at:.1f}" y="{TOP - 10}" text-anchor="middle">v{turn.champion}</text>'
    )


def _lanes(policy: PolicyResult, x: Callable[[float], float], top: float, every: int) -> list[str]:
    """Three lanes: quality's verdict, drift news, trainings. A mark for each check, with its reasons as its title."""
    parts = [
        f'<text class="axis" x="{LEFT - 8}" y="{top + at * LANE + 15:.1f}" text-anchor="end">{name}</text>'
        for at, name in enumerate(("quality", "drift news", "trainings"))
    ]
    for turn in policy.turns:
        left, right = x(turn.row - every), x(turn.row)
        wide = max(right - left - 1, 0.8)
        tall = {"held": 5, "lost": 16, "not known yet": 5}[turn.verdict]
        said = f"<title>row {turn.row:,}, version {turn.version}: {escape(turn.why)}</title>"
        style = turn.verdict.replace(" ", "-")
        parts.append(
            f'<rect class="{style}" x="{left:.1f}" y="{top + 19 - tall:.1f}" width="{wide:.1f}" height="{tall}" rx="1">'
            f"{said}</rect>"
        )
        if turn.drift_news:
            parts.append(f'<circle class="news" cx="{right:.1f}" cy="{top + LANE + 11:.1f}" r="3">{said}</circle>')
        if turn.trained:
            parts.append(_training(turn, right, top + 2 * LANE + 11, said))
    return parts


def _training(turn: Turn, at: float, middle: float, said: str) -> str:
    if turn.outcome == "promoted":
        return f'<path class="promoted" d="M{at:.1f},{middle - 6:.1f} l6,11 h-12 z">{said}</path>'
    a, b = f"{at - 4:.1f},{middle - 4:.1f} l8,8", f"{at - 4:.1f},{middle + 4:.1f} l8,-8"
    return f'<path class="refused" d="M{a} M{b}">{said}</path>'


def _rows_axis(study: Study, x: Callable[[float], float], top: float) -> list[str]:
    """Row numbers, and the dates of these rows where the file has some."""
    turns = study.policies[0].turns
    rows, moments = [0, *(t.row for t in turns), study.rows], [study.first_at, *(t.at for t in turns), study.last_at]
    form = "%b %Y" if study.last_at - study.first_at > LONG_S else "%d %b"
    parts = [f'<text class="tick" x="{LEFT - 22}" y="{top + 14:.1f}" text-anchor="end">row</text>']
    for tick in _ticks(0, study.rows, 6):
        at = x(tick)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{top + 14:.1f}" text-anchor="middle">{tick:,.0f}</text>')
        if study.dated:
            day = datetime.fromtimestamp(float(np.interp(tick, rows, moments)), UTC).strftime(form)
            parts.append(f'<text class="tick faint" x="{at:.1f}" y="{top + 29:.1f}" text-anchor="middle">{day}</text>')
    return parts


def _svg(height: float, name: str, parts: Iterable[str]) -> str:
    inner = "\n".join(parts)
    return (
        f'<div class="picture"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(name)}">\n'
        f"{inner}\n</svg></div>"
    )


# -- scales and colours --------------------------------------------------------------------------------------------


def _scale(low: float, high: float) -> Callable[[float], float]:
    return lambda value: LEFT + PLOT * (value - low) / max(high - low, 1e-12)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9) / about))
    step = next(step * times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 10) for at in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def _middle(stretch: Stretch) -> float:
    return (stretch.start + stretch.stop) / 2


def _up(share: float, bottom: float) -> str:
    return f"{bottom - WEIGHTS_HEIGHT * share:.1f}"


def _experts(turns: Iterable[Turn]) -> list[str]:
    """Their names, kin beside each other."""
    return sorted(dict.fromkeys(name for turn in turns for name in turn.weights), key=_family)


def _shares(turn: Turn, names: Sequence[str]) -> dict[str, float]:
    """Each expert's part after this check; without an adaptation the identity's is 1."""
    if turn.adaptation is None or not turn.weights:
        return {name: float(name == FAMILIES[0]) for name in names}
    total = sum(turn.weights.values()) or 1.0
    return {name: turn.weights.get(name, 0.0) / total for name in names}


def _family(name: str) -> int:
    family = name.partition("-")[0]
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)


def _colour(name: str, names: Sequence[str]) -> str:
    """A hue for each kind of expert; within it, the longer its window the stronger."""
    kin = [other for other in names if _family(other) == _family(name)]
    shade = 3 if len(kin) == 1 else 1 + round(2 * kin.index(name) / (len(kin) - 1))
    return f"expert family{_family(name)} shade{shade}"
