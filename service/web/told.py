"""What came of a run, in one sentence, and its gates as chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from service.web.shapes import Chip
from training.manifest import GateResult


class Gate(msgspec.Struct):
    name: str = ""
    passed: bool = False
    value: float | None = None
    threshold: float | None = None
    reason: str = ""


class _Verdict(msgspec.Struct):
    passed: bool = False
    gates: tuple[Gate, ...] = ()


class Story(msgspec.Struct):
    """What a run's record says, as far as a line of it shows; what is not named is not decoded."""

    error: str | None = None
    check: int | None = None
    verdict: _Verdict | None = None
    times: int = 0
    waits_for: tuple[str, ...] = ()


_decode = msgspec.json.Decoder(Story).decode


def story_of(record: str | Mapping[str, Any]) -> Story:
    """What a line shows of a record, as it is stored or decoded."""
    return _decode(record) if isinstance(record, str) else msgspec.convert(record, Story)


def chips(gates: Sequence[Gate | GateResult]) -> tuple[Chip, ...]:
    return tuple(
        Chip(gate=gate.name, passed=gate.passed, text=gate.reason, value=gate.value, threshold=gate.threshold)
        for gate in gates
    )


BY_ITSELF: Final = ("check", "retrain", "bootstrap", "retention", "retention_part")
"""Kinds of runs whose reason is not a person's."""


def sentence_of(run: Any, told: Story) -> str:
    """What came of a run (a `Run`, or a row of `runs`) and why."""
    kind, state, outcome, version = run.kind, run.state, run.outcome, run.version
    why, who = str(run.why), str(run.who)
    asked = f"; {who} said: {why}" if why and kind not in BY_ITSELF else ""
    if state == "queued":
        return f"{kind} waits for its turn{asked}"
    if state == "waiting":
        return f"{kind} waits for {', '.join(told.waits_for)}{asked}"
    if state == "running":
        return f"{kind} is under way: {why}" if why else f"{kind} is under way"
    if state == "failed":
        times = f", for the {told.times}th time in a row" if told.times > 1 else ""
        return f"{kind} ended as {outcome}{times}: {told.error or why or 'the record does not say why'}"
    gates = told.verdict.gates if told.verdict is not None else ()
    failing = [gate.reason for gate in gates if not gate.passed]
    if kind == "check":
        return why
    if outcome in ("kept", "refused"):
        return f"the candidate was not promoted: {'; '.join(failing) or told.error or why}"
    if outcome == "promoted":
        if kind == "promote":
            return f"version {version} was put in service by hand{asked}"
        judged = next((gate.reason for gate in gates if gate.name == "quality"), "")
        return f"version {version} took over: {judged or '; '.join(failing) or why}"
    if outcome == "rolled_back":
        return f"version {version} is in service again{asked}"
    if outcome == "no_action":
        return f"{kind} changed nothing: {told.error or why}"
    said: dict[str, str] = {
        "off": "adaptations were switched off",
        "on": "adaptations were switched on",
        "paused": "the loop was paused",
        "resumed": "the loop was resumed",
        "erased": "rows were erased",
        "gone": "a home counts as gone for good",
        "deleted": "old rows were deleted",
        "tagged": f"version {version} was tagged",
        "noted": f"version {version} has a note",
    }
    return f"{said.get(outcome or '', f'{kind} ended as {outcome}')}{asked}"
