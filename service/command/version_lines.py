"""What `evergreen models show`, `compare`, `lineage` and `reproduce` print: a sentence first, then lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from monitoring.wording import metric_name, percent
from service.command.layout import named, paragraph, table
from service.serving.management.sentence import moment

if TYPE_CHECKING:
    from training.lineage import Traced
    from training.reproduction import Changed, Reproduction

Parts = list[tuple[str, str]]

MADE: Final = {"bootstrap": "the first one", "retrain": "retrained", "push": "pushed"}
SHOWN: Final = 8
"""Rows of a table that has many, the most telling first."""
SHORT: Final = 12
"""Characters of a digest."""


# -- one version -----------------------------------------------------------------------------------------------------


def version_lines(found: Mapping[str, Any], width: int | None) -> list[str]:
    """`GET /manage/models/{version}` for people."""
    manifest, lineage = found["manifest"], found["lineage"]
    parts: Parts = [("tags", ", ".join(found["tags"]))] if found["tags"] else []
    parts += [("note", f"{_at(one['at'])}, {one['who']}: {one['text']}") for one in found["notes"]]
    parts += _made(lineage["made"])
    parts += _data(lineage["data"], manifest.get("data") or {})
    engine = f"{found['estimator'] or 'estimator not known'}, served by {found['engine']}"
    parts.append(("estimator", f"{engine}, seed {manifest.get('seed', 0)}"))
    parts.append(("parameters", _pairs(manifest.get("parameters") or {})))
    verdict = manifest.get("verdict") or {}
    parts += [("gates", _gate(gate)) for gate in verdict.get("gates", ())]
    parts.append(("on its holdout", _pairs(((found["quality"] or {}).get("metrics")) or {}, metric_name)))
    ranked = sorted((manifest.get("importance") or {}).items(), key=lambda one: -one[1])
    more = f"; {len(ranked) - SHOWN} more" if len(ranked) > SHOWN else ""
    parts.append(("importance", ", ".join(f"{name} {percent(share)}" for name, share in ranked[:SHOWN]) + more))
    parts += [("served", _span(one)) for one in lineage["served"]]
    parts.append(("answers", _answers(lineage["answers"])))
    parts.append(("libraries", _pairs({**(manifest.get("libraries") or {}), **_machine(manifest)})))
    parts += [("told", each) for each in manifest.get("notes") or ()]
    return [*paragraph(sentence_of(found), width), "", *named([part for part in parts if part[1]], width)]


def sentence_of(found: Mapping[str, Any]) -> str:
    """`Version 2 answers since 03:46; retrained on 1,360 rows, AUC 0.934 ± 0.02 on 150 holdout rows.`"""
    served, data = found["lineage"]["served"], found["lineage"]["data"]
    number, quality = found["version"], found["quality"] or {}
    if not served:
        stands = "was never in service"
    elif served[-1]["until"] is None:
        stands = f"answers since {_at(served[-1]['since'])}"
    else:
        stands = f"answered until {_at(served[-1]['until'])}"
    rows = "" if data["fitted"] is None else f" on {data['fitted']:,} rows"
    made = f"{MADE.get(found['origin'], found['origin'])}{', trained' if found['origin'] == 'bootstrap' else ''}{rows}"
    good = ""
    if quality.get("challenger") is not None:
        error = "" if quality.get("error") is None else f" ± {1.96 * quality['error']:.2g}"
        good = (
            f", {metric_name(quality['metric'])} {quality['challenger']:.4g}{error} on {quality['rows']:,} holdout rows"
        )
    return f"Version {number} {stands}; {made}{good}."


def _made(made: Mapping[str, Any] | None) -> Parts:
    if made is None:
        return [("made", "the run that made it is not kept any more")]
    said = [f"run {made['run']}, {made['kind']} by {made['who']} ({made['trigger']})"]
    if made["against"] is not None:
        said.append(f"took over from version {made['against']}")
    if made["check"] is not None:
        said.append(f"decided by check {made['check']}")
    return [("made", ", ".join(said)), ("because", made["why"])]


def _data(data: Mapping[str, Any], manifest: Mapping[str, Any]) -> Parts:
    if data["snapshot"] is None:
        return [("data", "every row it was made from was erased")]
    whole = f"{data['rows']:,} rows" if data["rows"] is not None else "rows not counted"
    recorded = "" if not data["recorded"] else f", {data['recorded']:,} of them recorded"
    use = "judged on" if data["fitted"] is None else "data"  # what a pushed one was fitted to is not known
    parts = [(use, f"{whole}{recorded}, snapshot {data['snapshot'][:SHORT]}")]
    if data["fitted"] is not None:
        last: dict[Any, str] = {True: "fitted again to all rows after it was judged", False: "the judged model itself"}
        window = (manifest.get("window") or {}).get("name")
        told = [f"{data['fitted']:,} rows", window or "", last.get(manifest.get("last_fit"), "")]
        parts.append(("fitted to", ", ".join(each for each in told if each)))
    if (data["since"] or 0) > 0:
        parts.append(("their time", f"{_at(data['since'])} to {_at(data['until'])}"))
    if data["shared_with"]:
        parts.append(("the same", f"snapshot made {_listed('version', data['shared_with'])}, too"))
    return parts


def _span(one: Mapping[str, Any]) -> str:
    until = "now" if one["until"] is None else _at(one["until"])
    return f"{_at(one['since'])} to {until}, by run {one['run']}"


def _answers(found: Mapping[str, Any]) -> str:
    if not found["rows"]:
        return "the record has none"
    many = f"{'more than ' if found['more'] else ''}{found['rows']:,}"
    count = found["adaptations"]
    adapted = "" if not count else f", adapted {'once' if count == 1 else f'{count:,} times'}"
    return f"{many}, {_at(found['since'])} to {_at(found['until'])}{adapted}"


# -- two versions ----------------------------------------------------------------------------------------------------


def comparison_lines(found: Mapping[str, Any], width: int | None) -> list[str]:
    """`GET /manage/models/{a}/compare/{b}` for people, with what both predict."""
    a, b = found["a"], found["b"]
    sides = f"version {a['version']}", f"version {b['version']}"
    same: list[str] = []
    lines = paragraph(comparison_sentence(found), width)
    lines += ["", *named(_predictions(found["predictions"], a["version"], b["version"]), width)]
    how = [
        {"name": name, "a": a[key], "b": b[key], "differs": a[key] != b[key]}
        for name, key in (("as", "origin"), ("by run", "run"), ("estimator", "estimator"), ("served by", "engine"))
    ]
    tags = [", ".join(side["tags"]) for side in (a, b)]
    for title, rows in (
        ("made", [*_different("how they were made", how, same), *([("tags", *tags)] if any(tags) else [])]),
        ("data", _different("data", found["data"], same)),
        ("parameter", _different("parameters", found["parameters"], same)),
        ("on its own holdout", _different("metrics", found["metrics"], same, metric_name)),
        ("gate", _gates(a["gates"], b["gates"])),
        ("importance of", _ranked(found["importance"], "feature", percent)),
        (f"slice ({metric_name(found['slice_metric'])})", _ranked(found["slices"], "name", "{:.4g}".format)),
        ("library", _different("libraries", found["libraries"], same)),
    ):
        if rows:
            lines += ["", *table((title, *sides), rows, width)]
    if same:
        lines += ["", *paragraph(", ".join(same), width, first="the same: ")]
    return lines


def comparison_sentence(found: Mapping[str, Any]) -> str:
    """`Version 2 beside version 1: other data and parameters; 1,873 of 2,000 answers agree; labels speak for 2.`"""
    a, b = found["a"]["version"], found["b"]["version"]
    other = [
        word
        for word, rows in (
            ("data", found["data"]),
            ("parameters", found["parameters"]),
            ("libraries", found["libraries"]),
        )
        if any(row["differs"] for row in rows)
    ]
    said = [f"{_and(other)} differ" if other else "the same data, parameters and libraries"]
    told = found["predictions"]
    if told and told["rows"]:
        if told["identical"] == told["rows"]:
            said.append(f"all {told['rows']:,} predictions are identical bit for bit")
        elif told["agree"] is not None:
            said.append(f"{told['agree']:,} of {told['rows']:,} answers agree")
        else:
            said.append(f"predictions are {told['mean']:.4g} apart on average, {told['largest']:.4g} at most")
        evidence = told["evidence"]
        if evidence is not None:
            apart = evidence["a"] - evidence["b"]
            sure = abs(apart) > 1.96 * evidence["error"]
            said.append(f"labels speak for version {b if apart > 0 else a}" if sure else "labels speak for neither")
    return f"Version {a} beside version {b}: {'; '.join(said)}."


def _predictions(told: Mapping[str, Any] | None, a: int, b: int) -> Parts:
    if told is None:
        return [("predictions", "not compared: that needs both artefacts; leave out --url where these are")]
    shared = [] if told["shared"] is None else [("data", f"{told['shared']:,} rows are in both snapshots")]
    if not told["rows"]:
        return [("predictions", f"not compared: {told['note']}"), *shared]
    parts = [("asked", f"{told['rows']:,} rows, {told['asked']}; the versions' own output, without adaptations")]
    agree = "" if told["agree"] is None else f"{told['agree']:,} answered alike, "
    parts.append(
        (
            "predictions",
            f"{agree}{told['identical']:,} identical bit for bit; {told['mean']:.3g} apart on average, "
            f"{told['largest']:.3g} at most",
        )
    )
    if (labels := told["evidence"]) is not None:
        measured = f"{metric_name(labels['metric'])} {labels['a']:.4g} of version {a}, {labels['b']:.4g} of version {b}"
        chance = f"{labels['rows']:,} labelled rows new to both; ± {1.96 * labels['error']:.2g} is chance"
        parts.append(("labels", f"{measured} on {chance}"))
    else:
        parts.append(("labels", "too few labelled rows of the record are new to both"))
    return [*parts, *shared]


def _different(what: str, rows: Sequence[Mapping[str, Any]], same: list[str], name: Any = str) -> list[Sequence[Any]]:
    """The rows that differ; how many do not is added to `same`."""
    if alike := sum(not row["differs"] for row in rows):
        same.append(f"{alike} of {what}")
    return [
        (name(row["name"]), _shown(row["a"], row["name"]), _shown(row["b"], row["name"]))
        for row in rows
        if row["differs"]
    ]


def _gates(a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]]) -> list[Sequence[Any]]:
    of = [{gate["name"]: _gate_value(gate) for gate in gates} for gates in (a, b)]
    return [
        (name.replace("_", " "), of[0].get(name, ""), of[1].get(name, "")) for name in dict.fromkeys((*of[0], *of[1]))
    ]


def _gate_value(gate: Mapping[str, Any]) -> str:
    value = "" if gate["value"] is None else f" {gate['value']:,.4g}"
    return f"{'✓' if gate['passed'] else '✗'}{value}"


def _ranked(rows: Sequence[Mapping[str, Any]], name: str, written: Any) -> list[Sequence[Any]]:
    """The first few, and how many there are besides."""
    shown = [
        (row[name], *("" if row[side] is None else written(row[side]) for side in ("a", "b"))) for row in rows[:SHOWN]
    ]
    return [*shown, *([(f"{len(rows) - SHOWN} more (--json)", "", "")] if len(rows) > SHOWN else [])]


# -- from an answer, a run or a snapshot -----------------------------------------------------------------------------


def lineage_lines(found: Traced, width: int | None) -> list[str]:
    """Which versions it leads to."""
    parts = [
        (name.replace("_", " "), _fact(name, value)) for name, value in found.facts.items() if value not in (None, "")
    ]
    told = {how: [one.version for one in found.versions if one.how == how] for how in (v.how for v in found.versions)}
    said = "; ".join(f"{_listed('version', numbers)} {how}" for how, numbers in told.items())
    begin = f"{found.what[0].upper()}{found.what[1:]}"
    lines = paragraph(f"{begin}: {said or 'no version came of it'}.", width)
    lines += ["", *named(parts, width)]
    if found.versions:
        rows = [
            (one.version, one.how, _at(one.created_at) if one.created_at else "", MADE.get(one.origin, one.origin))
            for one in found.versions
        ]
        lines += ["", *table(("version", "how", "created", "origin"), rows, width)]
    return lines


def _fact(name: str, value: Any) -> str:
    if name == "at":
        return _at(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# -- made again ------------------------------------------------------------------------------------------------------


def reproduction_lines(found: Reproduction, width: int | None) -> list[str]:
    """What came of making a version again."""
    return [*paragraph(reproduction_sentence(found), width), "", *named(_reproduction(found), width)]


def reproduction_sentence(found: Reproduction) -> str:
    """`Version 3 was made again: 2,000 of 2,000 predictions identical bit for bit.`"""
    count = f"{found.identical:,} of {found.rows:,} predictions identical bit for bit"
    apart = "" if found.largest is None else f", the largest difference is {found.largest:.3g}"
    recorded = found.recorded
    if recorded.rows and recorded.identical < recorded.rows and found.identical == found.rows:
        apart = f", but only {recorded.identical:,} of {recorded.rows:,} recorded answers"
    return f"Version {found.version} was made again: {count}{apart}."


def _reproduction(found: Reproduction) -> Iterator[tuple[str, str]]:
    how = "fitted to all rows after it was judged" if found.last_fit else "the judged model itself"
    yield "trained", f"{found.estimator} on {found.trained_on:,} rows ({how}), {found.seconds:.1f} s in all"
    beside = {"": "", "onnx": " and its ONNX twin, which serves", "trees": " and its compiled trees, which serve"}
    both = f"the pipeline{beside[found.served_by]}"
    yield "compared", f"{both}, on rows spread over the snapshot"
    recorded = found.recorded
    if recorded.rows:
        through = f", {recorded.adapted:,} of them through {_listed('adaptation', recorded.adaptations)}"
        yield (
            "answers",
            f"{recorded.identical:,} of the {recorded.rows:,} newest recorded answers made again bit for bit"
            f"{through if recorded.adapted else ''}",
        )
    if recorded.left_out:
        yield "left out", f"{recorded.left_out:,} recorded answers whose adaptation is not kept any more"
    if found.note:
        yield "note", found.note
    yield "libraries", changes(found.changed) or "as they were when it was made"


def changes(changed: Iterable[Changed]) -> str:
    """`numpy 2.1 then, 2.4 now`, "" without any."""
    return "; ".join(f"{one.name} {one.then or 'absent'} then, {one.now or 'absent'} now" for one in changed)


# -- words -----------------------------------------------------------------------------------------------------------


def _at(seconds: float) -> str:
    return moment(float(seconds), time.time(), named=False)


def _gate(gate: Mapping[str, Any]) -> str:
    return f"{'✓' if gate['passed'] else '✗'} {gate['name']}: {gate['reason']}"


def _pairs(found: Mapping[str, Any], name: Any = str) -> str:
    return ", ".join(f"{name(key)} {_shown(value, key)}" for key, value in found.items() if value is not None)


def _shown(value: Any, name: str = "") -> str:
    """A value in a few characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if name.startswith(("from", "until")):
            return _at(value) if value > 0 else "by row order"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    text = str(value)
    is_digest = len(text) >= 32 and not set(text) - set("0123456789abcdef")
    return text[:SHORT] if is_digest else text


def _machine(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {"on": manifest["machine"]} if manifest.get("machine") else {}


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _listed(word: str, numbers: Sequence[int]) -> str:
    """`version 2`, `versions 2, 3 and 5`, `adaptations 1 to 9`."""
    found = sorted(numbers)
    if len(found) == 1:
        return f"{word} {found[0]}"
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{word}s {found[0]} to {found[-1]}"
    return f"{word}s {_and([str(each) for each in found])}"
