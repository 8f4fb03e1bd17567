"""Damaged artefacts of compiled trees, loaded and asked by `training/trees.c` under AddressSanitizer and UBSan.

`run` compiles the engine anew with both, and gives a process with nothing but that engine so many files: whole ones of
random trees, with bytes flipped, numbers replaced, ends cut or sewn on, and nodes moved from one tree to the next. Each
is refused with a `ValueError` or answers rows with missing and infinite values alike by every way; anything else ends
the process.
"""

from __future__ import annotations

import random
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

if __name__ != "__main__":
    from benchmarks import sanitized

SOURCE: Final = Path(__file__).resolve().parent.parent / "training" / "trees.c"
HEAD: Final = struct.Struct("<8s8Id")
ODD_NUMBERS: Final = (0, 1, 2, 3, 7, 8, 31, 63, 64, 65, 0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def run(files: int, seed: int, say: Callable[[str], None]) -> str:
    """Load so many files and say what came of it; what is wrong, "" when nothing is."""
    return sanitized.run(SOURCE, Path(__file__), files, seed, say)


def whole(rng: random.Random) -> bytes:
    """A file of random trees, as `training/trees.py` writes them."""
    features, link = rng.randint(1, 6), rng.randint(0, 4)
    outputs = 1 if link == 2 else rng.randint(2, 4) if link > 2 else rng.randint(1, 4)
    width = rng.choice((1, outputs))
    inner = [rng.choice((0, 1, 3, 30, 31, 62, 63, 64, 90)) for _ in range(rng.randint(1, 11))]
    flags = array("B")
    for many in inner:
        waiting = 1  # places that a node has to take
        for left in range(many - 1, -1, -1):
            children = {0: 6, 1: rng.choice((2, 4)), 2: 0}  # nodes below this one: flags of the leaves beside them
            fitting = [n for n in children if n + waiting - 1 <= left and (n + waiting > 1) == (left > 0)]
            below = rng.choice(fitting)
            waiting += below - 1
            flags.append(children[below] | rng.randint(0, 1))
    nodes, doubles = len(flags), outputs * 3 + (len(flags) + len(inner)) * width
    head = HEAD.pack(b"EVGTREES", 1, features, outputs, len(inner), nodes, width, link, 0, float(rng.randint(1, 9)))
    fill = array("f", [rng.choice((float("nan"), 0.5)) for _ in range(features)])
    thresholds = array("f", [rng.choice((rng.gauss(0, 1), 0.0, float("inf"))) for _ in range(nodes)])
    ints = array("I", [*inner, *(rng.randrange(outputs) for _ in inner)])
    return b"".join((
        head, array("d", [rng.gauss(0, 1) for _ in range(doubles)]).tobytes(), fill.tobytes(), ints.tobytes(),
        thresholds.tobytes(), array("I", [rng.randrange(features) for _ in range(nodes)]).tobytes(), flags.tobytes(),
    ))  # fmt: skip


def damaged(rng: random.Random) -> Iterator[bytes]:
    """Files without end."""
    while True:
        first = whole(rng)
        yield first
        for _ in range(40):
            data = bytearray(first)
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                at = rng.randrange(len(data))
                match rng.randrange(7):
                    case 0:
                        data[at] ^= 1 << rng.randrange(8)
                    case 1:  # a count of the head, or a number anywhere
                        at = rng.choice((rng.randrange(8, 48), at)) & ~3
                        data[at : at + 4] = struct.pack("<I", rng.choice((*ODD_NUMBERS, rng.getrandbits(32))))
                    case 2:
                        del data[at:]
                    case 3:
                        data += bytes(rng.randrange(64))
                    case 4:  # the flags alone: the length stays right, and so do the counts
                        at = len(data) - 1 - rng.randrange(min(len(data), 200))
                        data[at] = rng.randrange(8)
                    case 5:
                        other = rng.randrange(len(data))
                        data[at], data[other] = data[other], data[at]
                    case 6:  # nodes from one tree to the next
                        features, outputs, trees, nodes, width = struct.unpack_from("<5I", first, 12)
                        sizes = 48 + 8 * (outputs * 3 + (nodes + trees) * width) + 4 * features
                        a, b = (sizes + 4 * rng.randrange(trees) for _ in range(2))
                        if b + 4 <= len(data) and a + 4 <= len(data):
                            (one,), (two,) = struct.unpack_from("<I", data, a), struct.unpack_from("<I", data, b)
                            if one and a != b and two < 0xFFFFFFFF:
                                struct.pack_into("<I", data, a, one - 1), struct.pack_into("<I", data, b, two + 1)
                if not data:
                    break
            yield bytes(data)


def _attack(trees: Any, files: int, seed: int) -> str:
    """What the process does."""
    rng, taken, refused = random.Random(seed), 0, {}
    source = damaged(rng)
    for _ in range(files):
        content = next(source)
        try:
            ensemble = trees.Ensemble(content)
        except ValueError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
            continue
        except MemoryError:
            refused["no memory"] = refused.get("no memory", 0) + 1
            continue
        taken += 1
        features, columns = ensemble.shape()
        rows = rng.choice((1, 3, 8, 20, 64, 65))
        values = (0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 3e38)
        x = array("f", [rng.choice(values) for _ in range(rows * features)])
        answers = set()
        for way in (None, "walk", *trees.ways()):
            out = array("d", bytes(8 * rows * columns))
            given = memoryview(x).cast("B").cast("f", (rows, features))
            ensemble.predict(given, memoryview(out).cast("B").cast("d", (rows, columns)), way)
            answers.add(out.tobytes())
        assert len(answers) == 1, "the ways answer otherwise"
    words = "\n".join(f"  {count:,}: {reason}" for reason, count in sorted(refused.items(), key=lambda one: -one[1]))
    return f"{files:,} files under AddressSanitizer and UBSan: {taken:,} answered, {files - taken:,} refused\n{words}"


if __name__ == "__main__":
    from sanitized import loaded

    print(_attack(loaded(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
