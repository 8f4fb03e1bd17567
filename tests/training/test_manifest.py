"""What earlier releases stored of a version and of a run is read, and goes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitoring.errors import CannotGoOn
from monitoring.store import open_store, runs
from training.artefact import write_manifest
from training.manifest import FormatError, RunRecord, manifest_of, record_of
from training.runs import Runs

MANIFEST = """{"name":"credit","created_at":1700000000.0,"origin":"retrain","seed":7,"git":null,"label":null,\
"until":1699990000.5,"notes":[],"parameters":{"learning_rate":0.1,"max_leaf_nodes":31,"max_iter":100,\
"min_samples_leaf":20,"l2_regularization":0.0,"max_bins":255},"data":{"snapshot":"73f7d9","rows":525,"from":-700.0,\
"until":-176.0,"window":{"name":"all rows","rows":525,"start":0,"stop":525},"windows":[{"name":"all rows","rows":525,\
"score":null,"chosen":true}],"trials":[],"holdout":{"rows":175,"from":-175.0,"until":-1.0,"origin":"source",\
"start":525,"stop":700}},"task":"binary","estimator":"HistGradientBoostingClassifier","libraries":{"python":"3.11.7",\
"scikit-learn":"1.9.1"},"twin":{"layout":"matrix","columns":[{"feature":"income"},{"feature":"purpose","codes":\
{"car":0.0,"home":1.0},"missing":null,"unknown":-1.0}],"input":"X","output":"probabilities","row_by_row":true},\
"parity":{"rows":251,"max_abs_difference":1.24e-7,"agrees":true,"reason":"251 rows agree to 1.2e-07"},"format":1,\
"digests":{"model.onnx":"c185","model.skops":"d130","reference.parquet":"802c","schema.json":"b5d6"},"quality":\
{"metric":"auc","challenger":0.9232977850697293,"champion":null,"rows":175,"error":0.01995470751580552,"metrics":\
{"accuracy":0.84,"auc":0.9232977850697293}},"verdict":{"passed":true,"gates":[{"name":"holdout_rows","passed":true,\
"value":175,"threshold":100,"reason":"the holdout has 175 labelled rows, 100 are needed"},{"name":"parity",\
"passed":true,"value":1.0,"threshold":null,"reason":"an ONNX twin serves it"}]}}"""
"""As release 0.2.0 wrote it."""

RECORDS = {
    "retrain": """{"check":41,"decision":{"train":true,"trigger":"quality","reasons":["auc fell"]},"unfit_rows":3,\
"data":{"snapshot":"73f7d9","rows":1300,"record_rows":600,"from":-700.0,"until":1700000600.0},"job":{"seconds":2.5,\
"windows":[{"name":"all rows","rows":975,"score":0.91,"chosen":true}],"notes":[]},"quality":{"metric":"auc",\
"challenger":0.93,"champion":0.61,"rows":150,"error":0.02,"metrics":{"auc":0.93}},"verdict":{"passed":true,"gates":\
[{"name":"quality","passed":true,"value":0.32,"threshold":0.0,"reason":"better"}]},"version":2,"rollout":\
{"flipped":true,"version":2,"champion":2,"previous":1,"ready":["host/0"],"not_ready":[],"failed":{},"waited_s":0.75,\
"reason":"all 1 live workers had it loaded"}}""",
    "push": """{"payload":{"path":"/var/pushes/a.skops","bytes":7,"temporary":true,"label":"mine"},"error":"no"}""",
    "erase": """{"payload":{"ids":2},"ids":2,"versions":[{"version":1,"snapshot_rows":1}],"reports":1,"exports":\
{"day=2026-11-23/part-0.parquet":1},"spool_records":1,"rows":{"predictions":1,"labels":1,"dead_letters":0}}""",
    "retention": """{"spool_records":0,"rows":{"predictions":20},"deleted_versions":[3],"loose_snapshots":1,\
"snapshots":1,"reports":0,"versions":[2],"exports":1,"errors":{"exports":"far away"},"older_than":\
{"predictions":1690000000.0},"seconds":0.2}""",
    "check": "{}",
}


def test_a_manifest_of_an_earlier_release_is_read_and_goes_back_unchanged() -> None:
    manifest = manifest_of(msgspec.json.decode(MANIFEST))

    assert json.dumps(manifest.document) == json.dumps(json.loads(MANIFEST))
    assert (manifest.format, manifest.seed, manifest.until, manifest.reproducible) == (1, 7, 1699990000.5, True)
    assert (manifest.data.snapshot, manifest.data.since, manifest.data.holdout.origin) == ("73f7d9", -700.0, "source")
    assert manifest.data.window is not None and manifest.data.window.stop == 525
    assert manifest.twin is not None and manifest.twin.columns[1].codes == {"car": 0.0, "home": 1.0}
    assert manifest.twin.columns[0].codes is None and manifest.twin.columns[1].missing is None
    assert manifest.quality is not None
    assert json.dumps(msgspec.to_builtins(manifest.quality)) == json.dumps(json.loads(MANIFEST)["quality"])
    assert manifest.verdict is not None and manifest.verdict.reasons[1] == "an ONNX twin serves it"


def test_a_manifest_written_to_its_folder_is_what_is_read_from_there(tmp_path: Path) -> None:
    (tmp_path / "model.skops").write_bytes(b"")

    written = write_manifest(tmp_path, json.loads(MANIFEST))

    assert manifest_of(json.loads((tmp_path / "manifest.json").read_bytes())) == written
    assert list(written.digests) == ["model.skops"]
    assert list(written.document) == list(json.loads(MANIFEST))


def test_the_record_of_a_run_of_an_earlier_release_is_read() -> None:
    told = {kind: record_of(msgspec.json.decode(text)) for kind, text in RECORDS.items()}

    retrain = told["retrain"]
    assert retrain.data is not None and retrain.verdict is not None and retrain.rollout is not None
    assert retrain.decision is not None and retrain.job is not None and retrain.quality is not None
    assert (retrain.check, retrain.unfit_rows, retrain.version, retrain.error) == (41, 3, 2, None)
    assert (retrain.data.record_rows, retrain.data.since, retrain.data.until) == (600, -700.0, 1700000600.0)
    assert (retrain.decision.reasons, retrain.verdict.reasons) == (("auc fell",), ("better",))
    assert (retrain.job.windows[0].chosen, retrain.quality.champion, retrain.rollout.waited_s) == (True, 0.61, 0.75)
    push = told["push"]
    assert (push.payload.path, push.payload.temporary, push.payload.label) == ("/var/pushes/a.skops", True, "mine")
    assert push.error == "no"
    assert (told["erase"].payload.ids, told["erase"].rows["labels"], told["erase"].spool_records) == (2, 1, 1)
    assert (told["retention"].snapshots, told["retention"].errors) == (1, {"exports": "far away"})
    assert told["check"] == RunRecord()


@pytest.mark.parametrize("kind", RECORDS)
def test_the_record_of_a_run_is_stored_as_it_was(kind: str, tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path}/evergreen.db")
    row = {"kind": kind, "state": "done", "trigger": "", "who": "", "why": "", "created_at": 1.0}
    with engine.begin() as connection:
        connection.execute(runs.insert().values(row | {"record": RECORDS[kind]}))

    run = Runs(engine).get(1)

    engine.dispose()
    assert run.record == record_of(run.document)
    assert msgspec.json.encode(run.document).decode() == RECORDS[kind]


def test_what_another_release_added_is_kept_when_a_manifest_is_changed() -> None:
    document = {"format": 1, "colour": "blue", "data": {"snapshot": "a", "shape": [1]}, "digests": {"x": "1"}}

    changed = manifest_of(document).changed(data={"snapshot": None}, reproducible=False, digests={"y": "2"})

    assert changed.data.snapshot is None and not changed.reproducible
    assert changed.document == {
        "format": 1,
        "colour": "blue",
        "data": {"snapshot": None, "shape": [1]},
        "digests": {"x": "1", "y": "2"},
        "reproducible": False,
    }
    assert document["data"] == {"snapshot": "a", "shape": [1]}


@pytest.mark.parametrize("read", [manifest_of, record_of])
def test_what_a_newer_release_wrote_is_refused_with_the_remedy(read: Any) -> None:
    with pytest.raises(FormatError, match=r"^run 7 was written by a newer release: it has format 2.*up to 1: upgrade"):
        read({"format": 2, "seed": "of another kind by then"}, "run 7")
    with pytest.raises(CannotGoOn, match="has format '1'"):
        read({"format": "1"})
    with pytest.raises(FormatError, match="has format None"):
        read([])
    with pytest.raises(FormatError, match=r"cannot be read.*quality"):
        read({"quality": 7})
