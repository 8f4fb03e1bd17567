"""Hostile but acceptable: generated request bodies, the real door, and every room behind it.

`fill` sends bodies to the ASGI lane, whose record lies in a spool; `live_through` takes what was accepted through
drain, window, check, training, report, export and erasure. Nothing there may raise.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import struct
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from monitoring.drain import Drainer, DrainResult
from monitoring.drift import DriftPolicy
from monitoring.export import export
from monitoring.feature import Task
from monitoring.fits import FLOAT32_LIMIT, TARGET_LIMIT
from monitoring.quality import QualityPolicy
from monitoring.report import write_html
from monitoring.schema import FeatureSchema
from monitoring.store import open_store
from monitoring.window import read_window
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.serving.front import Front
from service.serving.worker import Worker
from tests.places import checked
from training import cycle, job
from training.artefact import SCHEMA
from training.cycle import work_off
from training.data import Prepared, prepare
from training.experts import AdaptPolicy
from training.gate_policy import GatePolicy
from training.lease import CONTROLLER, Lease
from training.loop import Loop
from training.policy import RetrainPolicy
from training.registry import Registry
from training.runs import Run, Runs
from training.split import TrainPolicy

NUL, RIGHT_TO_LEFT, SURROGATE = "\0", "\u202e", "\ud800"
CLASSES: dict[Task, tuple[Any, ...]] = {
    "binary": (0, 2**63 - 1),
    "multiclass": (f"a{NUL}b", "a", f"{RIGHT_TO_LEFT}late", "x" * 1000),
    "regression": (),
}
PLAIN_ROWS = 240
"""Ordinary labelled rows of each pass, so that there is something to learn."""


class Literal(str):
    """A number as it stands in the body."""


def to_json(value: Any) -> str:
    """JSON with `Literal`s as they are."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{to_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    return json.dumps(value)


# -- what is sent --------------------------------------------------------------------------------------------------


def mostly(good: st.SearchStrategy[Any], refused: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is refused once in twenty times: a body has many values, and one of them is enough."""
    return st.integers(0, 19).flatmap(lambda roll: good if roll else refused)


EDGES = (0, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**38, int(np.nextafter(FLOAT32_LIMIT, 0)))
numbers = mostly(
    st.one_of(
        st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.floats(-1e6, 1e6),
        st.integers(-(10**6), 10**6),
        st.sampled_from(["-0", "-0.0", "1e-400", "1e38", "3.4028235e38", "0.1e1", "5e-324", "1" * 39]).map(Literal),
    ),
    st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([int(FLOAT32_LIMIT) - 1, int(FLOAT32_LIMIT), 10**400, Literal("1e400"), Literal("1E+308")]),
)
texts = mostly(
    st.one_of(
        st.sampled_from(["", "Ulm", NUL, f"Ulm{NUL}", f"Ulm{NUL}x", RIGHT_TO_LEFT, "\ufeff", "\u2028", "null", "41"]),
        st.sampled_from(
            ["x" * 1024, "😀" * 1024, NUL * 1024, "\\\n\r\t\b\"'", "h:0", "nan", "NaN", "Bonn", "b" * 1000]
        ),
        st.text(st.characters(codec="utf-8"), max_size=30),
    ),
    st.sampled_from(["x" * 1025, SURROGATE, f"a{SURROGATE}b", "😀" * 1025]),
)
ZONES = (UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=23)))
times = mostly(
    st.one_of(
        st.datetimes(timezones=st.sampled_from(ZONES)).map(datetime.isoformat),
        st.sampled_from(["0001-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-23:59", "1970-01-01"]),
        st.sampled_from(["9999-12-31T23:59:59Z", "2026-W05-3", "20260131T120000", "2026-01-31T12:00:00.5+00:00:01"]),
    ),
    st.sampled_from(["2026-02-30", "٢٠٢٦-01-31", "1" * 65, "yesterday", "", "24:00", NUL]),
)
good_ids = st.one_of(
    st.integers(0, 400).map("row-{}".format),
    st.integers(0, 400).map("row-{}".format),
    st.sampled_from(["x" * 128, "😀" * 128, "'; drop table x; --", "%s\\", "é", "null", "{}"]),
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=40),
    st.uuids().map(str),
)
ids = mostly(good_ids, st.sampled_from(["x" * 129, "", "\u202e", NUL, SURROGATE, "a\nb"]))
records = st.fixed_dictionaries(
    {
        "a": st.none() | numbers,
        "n": st.none() | numbers,
        "member": st.none() | st.booleans(),
        "city": st.none() | texts,
        "joined": st.none() | times,
    },
    optional={"who": st.none() | st.booleans() | numbers | texts},
)


def label_values(task: Task) -> st.SearchStrategy[Any]:
    """Labels of a task: nearly all of them are right."""
    odd = st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from([2**63, 10**400, 2 * TARGET_LIMIT]))
    if task == "regression":
        edges = st.sampled_from([TARGET_LIMIT, -TARGET_LIMIT, int(TARGET_LIMIT), 0, 2**63 - 1, Literal("-0.0")])
        return mostly(st.floats(-1e4, 1e4) | edges, odd)
    return mostly(st.sampled_from(CLASSES[task]), odd)


def feedback(task: Task) -> st.SearchStrategy[tuple[str, bytes]]:
    """(path, body) of labels."""
    past = st.datetimes(max_value=datetime(2026, 1, 1), timezones=st.just(UTC)).map(datetime.isoformat)
    observed = mostly(
        st.one_of(st.none(), past, st.floats(-6e10, 1.7e9), st.sampled_from([0, -62135596800, "1969-12-31T23:00Z"])),
        times | st.floats(allow_nan=False) | st.sampled_from([-62135596801, 1e300, 10**400, -(10**30), 4_000_000_000]),
    )
    one = st.fixed_dictionaries({"id": ids, "label": label_values(task)}, optional={"observed_at": observed})
    return st.lists(one, min_size=1, max_size=2).map(lambda some: ("/feedback", _body({"labels": some})))


def predict() -> st.SearchStrategy[tuple[str, bytes]]:
    """(path, body) of records."""

    def body(some: list[tuple[Any, str]], with_ids: bool) -> tuple[str, bytes]:
        sent: dict[str, Any] = {"records": [record for record, _ in some]}
        return "/predict", _body({**sent, "ids": [id_ for _, id_ in some]} if with_ids else sent)

    return st.builds(
        body, st.lists(st.tuples(records, ids), min_size=1, max_size=3), st.sampled_from([True, True, False])
    )


def infer() -> st.SearchStrategy[tuple[str, bytes]]:
    """(path, body) of the V2 protocol."""
    kinds = {"a": "FP64", "n": "INT64", "member": "BOOL", "city": "BYTES", "joined": "BYTES"}

    def body(some: list[dict[str, Any]]) -> tuple[str, bytes]:
        inputs = [
            {"name": name, "shape": [len(some)], "datatype": kind, "data": [record[name] for record in some]}
            for name, kind in kinds.items()
        ]
        return "/v2/models/evergreen/infer", _body({"inputs": inputs})

    return st.builds(body, st.lists(records, min_size=1, max_size=3))


def infer_binary() -> st.SearchStrategy[tuple[str, bytes]]:
    """(path, body) of the V2 protocol with numbers and text in its binary extension."""

    def body(number: float, text: str) -> tuple[str, bytes]:
        raw = text.encode("utf-8", "surrogatepass")
        parts = {"a": struct.pack("<d", number), "city": struct.pack("<I", len(raw)) + raw}
        inputs: list[Any] = [
            {"name": name, "shape": [1], "datatype": kind, "parameters": {"binary_data_size": len(parts[name])}}
            for name, kind in (("a", "FP64"), ("city", "BYTES"))
        ]
        for name, kind, value in (("n", "INT64", None), ("member", "BOOL", True), ("joined", "BYTES", None)):
            inputs.append({"name": name, "shape": [1], "datatype": kind, "data": [value]})
        head = _body({"inputs": inputs})
        return f"/v2/models/evergreen/infer#{len(head)}", head + b"".join(parts.values())

    return st.builds(body, st.floats(), texts)


def lines() -> st.SearchStrategy[tuple[str, bytes]]:
    """(path#content type, body) of records in NDJSON."""

    def body(some: list[tuple[Any, str]], with_ids: bool) -> tuple[str, bytes]:
        named = [{**record, "id": id_} if with_ids else record for record, id_ in some]
        return "/predict#application/x-ndjson", b"\n".join(map(_body, named))

    return st.builds(body, st.lists(st.tuples(records, ids), min_size=1, max_size=3), st.booleans())


def table_in_csv() -> st.SearchStrategy[tuple[str, bytes]]:
    """(path#content type, body) of records in CSV."""

    def body(some: list[dict[str, Any]], with_who: bool) -> tuple[str, bytes]:
        text = io.StringIO()
        names = ["a", "n", "member", "city", "joined", *(["who"] if with_who else [])]
        writer = csv.writer(text)
        writer.writerows([names, *([record.get(name) for name in names] for record in some)])
        return "/predict#text/csv", text.getvalue().encode("utf-8", "surrogatepass")

    return st.builds(body, st.lists(records, min_size=1, max_size=3), st.booleans())


def arrow() -> st.SearchStrategy[tuple[str, bytes]]:
    """(path#content type, body) of Arrow streams with columns of many types."""
    edges = [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1]
    whole = st.sampled_from(edges) | st.integers(-1000, 1000)
    floats = mostly(st.floats(-1e38, 1e38) | st.just(float("nan")), st.floats())
    moments = mostly(st.integers(-(10**9), 10**9), st.sampled_from(edges))
    spelled = texts.filter(lambda text: SURROGATE not in text)
    exact = st.decimals(-1e9, 1e9, places=3)
    days = st.integers(-719162, 2932896)
    clock = [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "-05:00")]
    word = [pa.string(), pa.large_string(), pa.string_view()]
    columns = {
        "a": [(pa.float64(), floats), (pa.float32(), st.floats(width=32)), (pa.uint64(), st.integers(0, 2**64 - 1))],
        "n": [(pa.int64(), whole), (pa.int8(), st.integers(-128, 127)), (pa.decimal128(38, 3), exact)],
        "member": [(pa.bool_(), st.booleans())],
        "city": [(kind, spelled) for kind in (*word, *(pa.dictionary(pa.int32(), kind) for kind in word[:2]))],
        "joined": [*((kind, moments) for kind in clock), (pa.date32(), days), (pa.string(), times)],
        "who": [(pa.int16(), st.integers(0, 9)), (pa.string(), spelled), (pa.bool_(), st.booleans())],
    }  # fmt: skip

    @st.composite
    def stream(draw: st.DrawFn) -> tuple[str, bytes]:
        rows = draw(st.integers(1, 4))
        found = {}
        for name, choices in columns.items():
            if name != "who" or draw(st.booleans()):
                kind, values = draw(st.sampled_from(choices))
                values = st.lists(st.none() | values, min_size=rows, max_size=rows)
                plain = kind.value_type if pa.types.is_dictionary(kind) else kind
                column = pa.array(draw(values), plain)
                found[name] = column.dictionary_encode() if pa.types.is_dictionary(kind) else column
        if draw(st.booleans()):
            spelled_ids = ids.filter(lambda text: SURROGATE not in text)
            found["id"] = pa.array(draw(st.lists(spelled_ids, min_size=rows, max_size=rows)), pa.string())
        sink = io.BytesIO()
        table = pa.table(found)
        packing = pa.ipc.IpcWriteOptions(compression=draw(st.sampled_from([None, None, "zstd", "lz4"])))
        with pa.ipc.new_stream(sink, table.schema, options=packing) as writer:
            writer.write_table(table, draw(st.sampled_from([1, 2, 8])))
        return "/predict#application/vnd.apache.arrow.stream", sink.getvalue()

    return stream()


def bodies(task: Task) -> st.SearchStrategy[tuple[str, bytes]]:
    """(path, body) of any kind."""
    plain = (predict(), predict(), feedback(task), feedback(task), infer(), infer_binary())
    return st.one_of(*plain, lines(), table_in_csv(), arrow(), arrow())


def _body(value: Any) -> bytes:
    return to_json(value).encode()


# -- the deployment ------------------------------------------------------------------------------------------------


def source(task: Task) -> Prepared:
    """Rows that the first version of a task is trained from."""
    random = np.random.default_rng(0)
    rows = 240
    frame = pd.DataFrame({name: random.normal(size=rows) for name in ("a", "n")})
    frame["n"] = (frame["n"] * 100).astype(int)
    frame["member"] = random.random(rows) < 0.5
    frame["city"] = random.choice(np.array(["Ulm", "Bonn", f"Ulm{NUL}", "x" * 1024], dtype=object), rows)
    frame["joined"] = pd.to_datetime(1.6e9 + 86_400.0 * random.integers(0, 900, rows), unit="s")
    rank = (frame["a"] + 0.3 * random.normal(size=rows)).rank(pct=True, method="first")
    classes = CLASSES[task]
    frame["y"] = rank * 100 if not classes else [classes[min(int(r * len(classes)), len(classes) - 1)] for r in rank]
    return prepare(frame, target="y", task=task)


@dataclass
class Place:
    """One deployment: the door, the spool, the store and the loop."""

    task: Task
    engine: sa.Engine
    loop: Loop
    worker: Worker
    lane: Front
    sent: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    labelled: int = 0

    @classmethod
    def make(cls, folder: Path, url: str, task: Task) -> Place:
        """A deployment with version 1 of the task in service."""
        settings = load(environ={"EVERGREEN_HOME": str(folder), "EVERGREEN_PRIVACY__HASH": '["who"]'})
        engine = open_store(url)
        lease = Lease(engine, CONTROLLER, "test", 86_400)
        assert lease.acquire() and lease.token is not None
        registry = Registry(engine, settings.models_dir, "evergreen")
        loop = Loop(
            engine=engine, registry=registry, runs=Runs(engine), token=lease.token, who="test", seed=0,
            drift=DriftPolicy(min_rows=50, window_rows=100_000), quality=QualityPolicy(min_labels=20),
            retrain=RetrainPolicy(min_labelled_rows=50, min_new_labelled_rows=20, cooldown_s=0),
            gates=GatePolicy(min_holdout_rows=20), training=TrainPolicy(min_rows=20), adapt=AdaptPolicy(),
            snapshots_dir=folder / "snapshots", work_dir=folder / "work", spool_dir=settings.spool_dir,
            reports_dir=folder / "reports", exports=str(folder / "exports"), source=lambda: source(task),
            run_job=job.run, live_workers=lambda: (), on_event=lambda event, fields: None,
            clock=time.time, sleep=lambda seconds: None,
        )  # fmt: skip
        run = cycle.bootstrap(loop)
        assert run is not None and run.outcome == "promoted", run
        live = Live(model="evergreen", champion=LiveVersion(1, str(registry.path(1))))
        write_live(settings.live_file, live)
        worker = Worker(settings, folder / "run", "api-1")
        worker.start()
        return cls(task, engine, loop, worker, Front(_beyond, lambda: worker))

    def close(self) -> None:
        self.worker.close()
        self.engine.dispose()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the lane's answer."""
        path, _, head = path.partition("#")
        kind = head.encode() if "/" in head else b"application/json"
        headers = [(b"content-type", kind), (b"accept", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(b"inference-header-content-length", head.encode())] if head.isdigit() else []
        answer: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            answer.append(message)

        await self.lane({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
        return answer[0]["status"], b"".join(part.get("body", b"") for part in answer[1:])

    def send(self, path: str, body: bytes) -> None:
        """Send one body, and remember what became of it. Raises AssertionError for a 5xx."""
        status, answer = asyncio.run(self.post(path, body))
        assert status < 500, (path, body[:2000], answer)
        kind = path.partition("#")[0]
        self.sent[kind] += 1
        if status in (200, 202):
            self.accepted[kind] += 1
            if kind == "/feedback":
                self.labelled += json.loads(answer)["accepted"]
            elif kind == "/predict":
                self.rows += len(json.loads(answer)["ids"])
            else:
                self.rows += json.loads(answer)["outputs"][0]["shape"][0]


async def _beyond(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(f"{scope['path']} left the lane")


def fill(place: Place, count: int, seed_: int) -> None:
    """Send ordinary rows with labels, then generated bodies until `count` of them were accepted."""
    rows = source(place.task).frame.head(PLAIN_ROWS)
    for at in range(0, PLAIN_ROWS, 40):
        some = range(at, at + 40)
        sent = [{"a": float(rows["a"][i]), "n": int(rows["n"][i]), "member": bool(rows["member"][i]),
                 "city": rows["city"][i], "joined": "2021-03-04"} for i in some]  # fmt: skip
        place.send("/predict", _body({"records": sent, "ids": [f"plain-{i}" for i in some]}))
        label = rows["_label"].tolist()
        place.send("/feedback", _body({"labels": [{"id": f"plain-{i}", "label": label[i]} for i in some]}))
    assert place.accepted.total() == place.sent.total()
    target = place.accepted.total() + count
    while place.accepted.total() < target:

        @seed(seed_)
        @settings(
            max_examples=max(count, 20),  # the first one is always the simplest, which is refused
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies(place.task))
        def send(sent: tuple[str, bytes]) -> None:
            place.send(*sent)

        send()
        seed_ += 1


def drain(place: Place) -> DrainResult:
    """Everything recorded is in the store; the door records no more."""
    assert place.worker.log is not None and place.loop.spool_dir is not None
    place.worker.log.close()
    with Drainer(place.loop.spool_dir, place.engine) as drainer:
        return drainer.drain(time.time())


def live_through(place: Place, folder: Path) -> dict[str, Any]:
    """What became of the accepted rows in every room. Raises AssertionError, or whatever a room raises."""
    drained = drain(place)
    assert drained.dead == 0, _letters(place.engine)
    assert (drained.predictions, drained.labels) == (place.rows, place.labelled)
    loop, champion = place.loop, place.loop.registry.champion()
    schema = FeatureSchema.from_json((loop.registry.path(champion) / SCHEMA).read_bytes())
    window = read_window(place.engine, schema)
    assert len(window) == place.rows and (window.attrs["skipped"], window.attrs["unfit_labels"]) == (0, 0)

    seen = checked(loop, champion)
    assert seen.drift.skipped is None and seen.quality.measured.usable, seen
    write_html(seen.reference, seen.window, seen.schema, folder / "page.html", report=seen.drift)
    trained = _ask(place, "retrain")
    assert trained.outcome in ("kept", "promoted"), trained.document
    done = export(place.engine, schema, loop.exports)
    assert (done.rows, done.skipped) == (place.rows, 0)

    texts = [text for text in window["city"].dropna().unique().tolist() if NUL in text or len(text) > 1000]
    values: list[Any] = ["", *texts[:2], "10" + "0" * 399, 10**38, -(2**63)]
    for feature, value in [*(("city", value) for value in values[:-2]), *(("a", value) for value in values[-3:])]:
        _ask(place, "erase", feature=feature, value=value)
    _ask(place, "erase", feature="joined", value="0001-01-01T00:00:00+14:00")
    odd = [id_ for id_ in window["_id"].tolist() if not id_.startswith("plain")][:50]
    erased = _ask(place, "erase", ids=[*odd, NUL, "x" * 5000])
    assert not set(odd) & set(read_window(place.engine, schema)["_id"])
    after = checked(loop, loop.registry.champion())
    return {
        "sent": place.sent.total(), "accepted": place.accepted.total(), "rows": place.rows, "labels": place.labelled,
        "drifted": len(seen.drift.drifted), "labelled_window": seen.quality.measured.rows, "trained": trained.outcome,
        "erased": erased.record.rows, "unfit": sum(seen.unfit.values()) + sum(after.unfit.values()),
    }  # fmt: skip


def _ask(place: Place, kind: str, **payload: Any) -> Run:
    place.loop.runs.queue(kind, trigger="manual", who="ana", why="because", now=time.time(), payload=payload)
    run = work_off(place.loop)
    assert run is not None and run.state == "done", (kind, payload, run)
    return run


def _letters(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text("select reason, payload from dead_letters limit 5")))


def through(folder: Path, url: str, task: Task, count: int, seed_: int = 0) -> dict[str, Any]:
    """One pass: a new deployment of the task, `count` accepted bodies, every room; what became of them."""
    place = Place.make(folder, url, task)
    try:
        fill(place, count, seed_)
        return live_through(place, folder)
    finally:
        place.close()
