"""A replay as a whole: policies side by side on one stream, beside schedules with as many trainings."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from service.replay.run import Replayed, Turn, replay_loop
from service.replay.schedules import Schedules
from service.replay.scores import LOSS, METRIC, Scores, Stretch, over_time, score

if TYPE_CHECKING:
    from service.replay.stream import Stream
    from service.settings import Settings

FORMAT: Final = 1
"""Of the JSON file. Bump it when a reader of an older one would misread a new one."""
DENSE: Final = 4
"""How many times as many trainings the dense schedule has."""
STRETCHES: Final = 40
LEAST_STRETCH_ROWS: Final = 100

OnStep = Callable[[str, int, int, str], None]
"""Told what is being done, how many of how many rows are, and a few words."""


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """The loop under one policy."""

    name: str
    served: Scores
    raw: Scores
    """Of the champions' own output, before adaptation."""
    trainings: int
    """Besides the first version's."""
    promoted: int
    refused: int
    failed: int
    checks: dict[str, int]
    """By verdict on quality."""
    drift_news: int
    """Checks that said that something moved."""
    seconds: float
    training_s: float
    rows_a_minute: float
    """Of one core's time, besides the trainings."""
    served_over_time: list[Stretch]
    raw_over_time: list[Stretch]
    turns: list[Turn]


class ScheduleResult(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule of trainings at equal distances."""

    name: str
    trainings: int
    window: bool
    """Whether it trains on the newest rows only, as many as the first version had."""
    scores: Scores
    seconds: float
    over_time: list[Stretch]


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a replay found; what `--json` writes."""

    format: int = FORMAT
    data: str
    target: str
    task: str
    metric: str
    """Of `Scores.metric`."""
    loss: str
    """Of `Scores.loss`."""
    start_rows: int
    rows: int
    first_at: float
    last_at: float
    dated: bool
    """Whether the times are the file's own; else one row a minute."""
    every: int
    label_delay: str
    seed: int
    notes: list[str]
    policies: list[PolicyResult]
    schedules: list[ScheduleResult]

    def schedule(self, trainings: int, *, window: bool = False) -> ScheduleResult:
        """The schedule with so many trainings."""
        found = [s for s in self.schedules if s.trainings == trainings and (s.window == window or not trainings)]
        return found[0]


def replay(
    stream: Stream,
    policies: Mapping[str, Settings],
    *,
    data: str,
    label_delay: str,
    every: int = 500,
    seed: int = 0,
    on_step: OnStep = lambda what, done, total, note: None,
) -> Study:
    """The loop under each of the policies (name -> settings), and the schedules beside it.

    Raises `ReplayError` when a first version is not brought into service.
    """
    n, task = len(stream), stream.schema.task
    stretch = max(LEAST_STRETCH_ROWS, n // STRETCHES)
    results = []
    for name, settings in policies.items():
        with tempfile.TemporaryDirectory(prefix="evergreen-replay-") as folder:
            told = partial(_step, on_step, name, n)
            done = replay_loop(stream, settings, Path(folder), every=every, seed=seed, on_rows=told)
        results.append(_result(name, done, stream, stretch))

    schedules, found = Schedules(stream, seed), list[ScheduleResult]()
    for trainings, window in _wanted([result.trainings for result in results]):
        name = _name(trainings, window)
        run = schedules.equally_spaced(trainings, window=window, on_rows=partial(_step, on_step, name, n))
        found.append(
            ScheduleResult(
                name=name,
                trainings=trainings,
                window=window,
                scores=score(run.output, stream.truth, task),
                seconds=run.seconds,
                over_time=over_time(run.output, stream.truth, task, stretch),
            )
        )
    return Study(
        data=data,
        target=stream.schema.target,
        task=task,
        metric=METRIC[task],
        loss=LOSS[task],
        start_rows=len(stream.first.frame),
        rows=n,
        first_at=float(stream.at[0]),
        last_at=float(stream.at[-1]),
        dated=stream.dated,
        every=every,
        label_delay=label_delay,
        seed=seed,
        notes=list(stream.notes),
        policies=results,
        schedules=found,
    )


def _step(on_step: OnStep, what: str, total: int, done: int, note: str = "") -> None:
    on_step(what, done, total, note)


def _result(name: str, done: Replayed, stream: Stream, stretch: int) -> PolicyResult:
    task, trained = stream.schema.task, [turn for turn in done.turns if turn.trained]
    outcomes = Counter(turn.outcome for turn in trained)
    verdicts = Counter(turn.verdict for turn in done.turns)
    return PolicyResult(
        name=name,
        served=score(done.served, stream.truth, task),
        raw=score(done.raw, stream.truth, task),
        trainings=len(trained),
        promoted=outcomes["promoted"],
        refused=outcomes["kept"],
        failed=len(trained) - outcomes["promoted"] - outcomes["kept"],
        checks={verdict: verdicts[verdict] for verdict in ("held", "lost", "not known yet")},
        drift_news=sum(turn.drift_news for turn in done.turns),
        seconds=done.seconds,
        training_s=done.training_s,
        rows_a_minute=done.rows_a_minute,
        served_over_time=over_time(done.served, stream.truth, task, stretch),
        raw_over_time=over_time(done.raw, stream.truth, task, stretch),
        turns=list(done.turns),
    )


def _wanted(trainings: list[int]) -> list[tuple[int, bool]]:
    """(trainings, on a window) of each schedule, each once: none; as many as each policy had; four times as many."""
    wanted = [(0, False)]
    for count in trainings:
        if count:
            wanted += [(count, False), (count, True), (DENSE * count, False)]
    return list(dict.fromkeys(wanted))


def _name(trainings: int, window: bool) -> str:
    if not trainings:
        return "never trained again"
    times = "once" if trainings == 1 else f"{trainings} times"
    return f"trained {times}, equally spaced, {'newest rows' if window else 'all rows'}"
