"""Hostile bodies, read by `training/records.c` under AddressSanitizer and UBSan, and beside Python's own JSON.

    python -m benchmarks.fuzz_records [--bodies 100000] [--seed 1]

Bodies of random records are written in many ways and damaged. Each is left to the strict decoder, or Python's reader
finds the same float32 in it, to the last bit; anything else ends the process.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

if __name__ != "__main__" or __spec__ is not None:
    from benchmarks import sanitized

SOURCE: Final = Path(__file__).resolve().parent.parent / "training" / "records.c"
NAMES: Final = ("a", "age", "Alter in Jahren", "größe", "金額", "a.b", "records", "null", "x" * 60)
CATEGORIES: Final = ("", "car", "Straße", "null", "日本", "😀 b", "x" * 30, "ab}],")
MOST_CHARS: Final = 31
MARKS: Final = b'{}[]":,.+-eE019 \n\t\\\x00\x1f\x7f\x80\xc0\xed\xf4\xfftrufalsn'
RUNS: Final = (
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe0\x80\x80",
    b"\xee\xa0\x80",
    b"\xf0\x8f\x80\x80",
    b"\xdf",
)
"""Of bytes, most of which are no UTF-8."""
ODD: Final = (
    "0", "-0", "-0.0", "0.0e0", "1e22", "1e23", "1e-22", "1e-23", "1e66", "1e67", "1e-66", "1e-67", "16777217", "1E+2",
    "9007199254740993", "3.4028235677973366e38", "3.4028235e38", "1e-45", "7e-46", "1.17549435e-38", "01", "1.", ".5",
    "+1", "1e", "1e+", "--1", "0x1", "NaN", "Infinity", "-", "18446744073709551616", "9999999999999999999",
    "0." + "0" * 70 + "1", "1" + "0" * 40, "0" * 3, "1e9999999999", "0e9999999999", "1.00000005960464477539062500001",
)  # fmt: skip


def run(bodies: int, seed: int, say: Callable[[str], None]) -> str:
    """Read so many bodies and say what came of it; what is wrong, "" when nothing is."""
    return sanitized.run(SOURCE, Path(__file__), bodies, seed, say)


def number(rng: random.Random) -> str:
    """A number's text."""
    match rng.randrange(40):
        case 0:
            return rng.choice(ODD)
        case 1 | 2 | 3 | 4:
            return str(rng.randint(-(10 ** rng.randint(1, 21)), 10 ** rng.randint(1, 21)))
        case 5 | 6 | 7 | 8:  # halfway between two float32, nearly
            low = struct.unpack("<f", struct.pack("<I", rng.getrandbits(31) % 0x7F800000))[0]
            high = struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", low))[0] + 1))[0]
            middle = low / 2 + high / 2 if math.isfinite(high) else low
            return repr(math.nextafter(middle, rng.choice((-math.inf, middle, math.inf))))
        case 9 | 10 | 11 | 12:
            return f"{rng.uniform(-1e3, 1e3):.{rng.randint(0, 25)}f}"
        case 4:
            return f"{rng.gauss(0, 1) * 10 ** rng.randint(-60, 40):.{rng.randint(0, 20)}e}"
        case _:
            return repr(rng.gauss(0, 1) * 10 ** rng.randint(-3, 6))


def features(rng: random.Random) -> list[tuple[str, int, int, Any, float, float]]:
    """What a reader is made with: a few features, some of which no model reads."""
    found: list[tuple[str, int, int, Any, float, float]] = []
    names = rng.sample(NAMES, rng.randint(1, 6))
    read = rng.sample(range(len(names)), rng.randint(1, len(names)))
    for place, name in enumerate(names):
        kind = rng.randrange(3)
        codes = {text: float(at) for at, text in enumerate(rng.sample(CATEGORIES, 5))} if kind == 2 else None
        column = read.index(place) if place in read else -1
        found.append((name, kind, column, codes, rng.choice((math.nan, -1.0)), rng.choice((math.nan, -2.0))))
    return found


def written(rng: random.Random, known: list[tuple[str, int, int, Any, float, float]]) -> bytes:
    """A body of some records."""
    gap = rng.choice(("", "", " ", "\n  ", "\t\r"))
    ascii_only = rng.random() < 0.1

    def value(kind: int) -> str:
        if rng.random() < 0.1:
            return "null"
        if kind == 0:
            return number(rng)
        if kind == 1:
            return rng.choice(("true", "false"))
        if rng.random() < 0.9:
            return f'"{rng.choice(CATEGORIES)}"'
        text = rng.choice(('a"b', "a\\b", "y" * 31, "ä" * 31, "z" * 32, "\x7f", "\u2028"))
        return json.dumps(text, ensure_ascii=ascii_only)

    records = []
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        order = known if rng.random() < 0.8 else rng.sample(known, len(known))
        if rng.random() < 0.02:
            order = rng.choices(known, k=rng.randint(0, 7))
        inside = [f"{json.dumps(name, ensure_ascii=False)}{gap}:{gap}{value(kind)}" for name, kind, *_ in order]
        records.append(f"{{{gap}{f'{gap},{gap}'.join(inside)}{gap}}}")
    rest = rng.choice(("", "", ',"ids":["a"]', ',"record":false', " ", "]"))
    return f'{gap}{{{gap}"records"{gap}:{gap}[{gap}{f"{gap},{gap}".join(records)}{gap}]{rest}}}{gap}'.encode()


def bodies(rng: random.Random, known: list[tuple[str, int, int, Any, float, float]]) -> Iterator[bytes]:
    """Some bodies, most of them damaged."""
    for _ in range(rng.randint(1, 10)):
        first = written(rng, known)
        yield first
        for _ in range(rng.randrange(4)):
            body = bytearray(first)
            for _ in range(rng.choice((1, 1, 2, 4))):
                at = rng.randrange(len(body) + 1)
                match rng.randrange(6):
                    case 0:
                        body[at:] = b""
                    case 1:
                        body[at : at + rng.randrange(4)] = b""
                    case 2:
                        body[at:at] = bytes([rng.choice(MARKS)])
                    case 3:  # within a text, where there is one
                        text = body.find(rng.choice(("Straße".encode(), b"xxxx", "日".encode())))
                        body[max(text, 0) : max(text, 0)] = rng.choice(RUNS)
                    case 4:
                        body[at : at + 1] = bytes([rng.choice(MARKS)])
                    case _:
                        other = rng.randrange(len(body) + 1)
                        body[at:at] = body[other : other + rng.randrange(30)]
            yield bytes(body)


def expected(known: list[tuple[str, int, int, Any, float, float]], body: bytes, end: int) -> list[float]:
    """The matrix of the records in a body that was read up to `end`, as Python's own reader finds them."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        assert len(found) == len(pairs), f"a name twice: {body!r}"
        return found

    def refused(text: str) -> Any:
        raise AssertionError(f"{text}: {body!r}")

    head = body[:end].decode()
    document = json.loads(head + "}", object_pairs_hook=once, parse_int=float, parse_constant=refused)
    assert list(document) == ["records"], body
    columns = sorted((known_one for known_one in known if known_one[2] >= 0), key=lambda one: one[2])
    matrix: list[float] = []
    for record in document["records"]:
        assert set(record) == {name for name, *_ in known}, body
        for name, kind, _, _, _, _ in known:
            value = record[name]
            assert value is None or type(value) is (float, bool, str)[kind], body
            assert kind != 2 or value is None or len(value) <= MOST_CHARS, body
        for name, kind, _, codes, missing, unknown in columns:
            value = record[name]
            matrix.append(missing if value is None else codes.get(value, unknown) if kind == 2 else float(value))
    return matrix


def _attack(module: Any, count: int, seed: int) -> str:
    """What the process does."""
    rng, tried, taken, rows = random.Random(seed), 0, 0, 0
    while tried < count:
        known = features(rng)
        reader = module.Reader(known, MOST_CHARS)
        for body in bodies(rng, known):
            tried += 1
            most, piece = rng.choice((1, 3, 1000)), rng.choice((1, 50, 10_000))
            found = reader.read(body, most, piece)
            if found is None:
                continue
            matrix, pieces, end = found
            wanted = expected(known, body, end)
            packed = b"".join(struct.pack("<f", value) for value in wanted)
            for at in range(0, len(packed), 4):
                mine, theirs = matrix[at : at + 4], packed[at : at + 4]
                (number_,) = struct.unpack("<f", theirs)
                assert mine == theirs or number_ != number_, (body, mine, theirs)
                assert (number_ == number_) or struct.unpack("<f", mine)[0] != struct.unpack("<f", mine)[0], body
            assert len(matrix) == len(packed), body
            records = json.loads(body[:end] + b"}")["records"]
            assert len(records) <= most, body
            apart = [json.loads(b"[" + body[a:b] + b"]") for a, b, _ in pieces]
            assert [len(one) for one in apart] == [n for *_, n in pieces], body
            assert [record for one in apart for record in one] == records, body
            assert all(b - a >= piece for a, b, _ in pieces[:-1]), body
            assert piece > 1 or len(pieces) == len(records), body
            taken, rows = taken + 1, rows + len(records)
    return (
        f"{tried:,} bodies under AddressSanitizer and UBSan: {taken:,} read ({rows:,} records), the others left alone"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bodies", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    problem = run(given.bodies, given.seed, print)
    print(problem, end="")
    return int(bool(problem))


if __name__ == "__main__":
    if __spec__ is not None:
        sys.exit(main())
    from sanitized import loaded  # type: ignore[import-not-found]

    print(_attack(loaded(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
