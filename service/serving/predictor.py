"""The live model: load, verify, warm up, swap, predict.

A swap is one assignment. Whoever answers a request takes `LiveModel.current` once and uses it for all rows, so a
request is answered by one version and can say which. The new version is loaded, verified and warm before the old one
goes, and a version that will not load leaves the old one serving.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.errors import EvergreenError
from monitoring.fits import CATEGORY_CHARS
from monitoring.messages import said
from monitoring.schema import FeatureSchema
from service.handover import Live, LiveAdaptation, LiveVersion

if TYPE_CHECKING:
    import numpy as np

    from monitoring.columns import ArrowBatch
    from monitoring.decode import Batch, RequestDecoder
    from training.adaptation import Adapter
    from training.records import RecordReader, Records

    Decoded = Batch | ArrowBatch
    Run = Callable[[Decoded], np.ndarray]

logger = logging.getLogger("evergreen.predictor")

Engine = Literal["trees", "onnx", "scikit-learn"]

FIRST_BACKOFF_S: Final = 5.0
LONGEST_BACKOFF_S: Final = 300.0


class IncompatibleSchema(EvergreenError, ValueError):
    """Raised when a version expects other features than the one in service, so that clients' requests would break."""


class PrivateFeature(EvergreenError, ValueError):
    """Raised when a version was trained on a column that `[privacy]` keeps out of the record."""

    def __init__(self, version: int, columns: list[str]) -> None:
        super().__init__(
            f"version {version} was trained on {', '.join(columns)}, which [privacy] hashes or drops: take it out of "
            "there, or put it into [data] ignore and train anew"
        )


class Unpredictable(EvergreenError, ValueError):
    """Raised when a model has no finite answer to a well-formed record, as linear models have to enormous numbers."""

    def __init__(self, version: int, row: int) -> None:
        super().__init__(f"records[{row}]: version {version} has no finite answer; are its numbers in a usual range?")
        self.row = row


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version in memory, ready to answer.

    `run` takes a batch of n rows and returns probabilities (n by classes), or n values for a regression.
    """

    name: str
    version: int
    schema: FeatureSchema
    decoder: RequestDecoder
    engine: Engine
    run: Run
    classes: tuple[Any, ...]
    folder: Path
    """Of its artefact."""
    row_by_row: bool = False
    """Whether a row's answer is the same to the last bit whatever other rows are predicted with it."""
    run_with_matrix: Callable[[Decoded], tuple[np.ndarray, np.ndarray]] | None = None
    """The version's own output, and the matrix (n by columns, float32) that an adaptation reads beside it."""
    reader: RecordReader | None = None
    """Reads large bodies in JSON into the matrix that `run_matrix` takes; None where nothing can."""
    run_matrix: Callable[[np.ndarray], np.ndarray] | None = None
    adaptation: int | msgspec.UnsetType = msgspec.UNSET
    """Number of the adaptation that `run` and `run_matrix` apply."""

    def adapted(self, adapter: Adapter) -> ServedModel:
        """The same version, its output adapted."""
        both, alone = self.run_with_matrix, self.run_matrix
        apply, columns = adapter.apply, adapter.adaptation.columns
        assert both is not None

        def run(batch: Decoded) -> np.ndarray:
            output, matrix = both(batch)
            return apply(output, matrix if columns else None)

        def run_matrix(matrix: np.ndarray) -> np.ndarray:
            assert alone is not None
            return apply(alone(matrix), matrix if columns else None)

        return replace(self, run=run, run_matrix=alone and run_matrix, adaptation=adapter.number)

    def predict(self, batch: Batch) -> tuple[list[Any], list[list[float]] | None]:
        """The predictions of a batch in JSON values, and the probabilities of a classifier.

        Raises `Unpredictable` for records that the model has no finite answer to.
        """
        output = self.run(batch)
        if len(output) == 1 and output.ndim == 2:
            row = output[0].tolist()
            if row[0] - row[0] != 0.0:  # NaN and infinity alone
                raise Unpredictable(self.version, 0)
            return [self.classes[row.index(max(row))]], [row]
        self._check_finite(output)
        return self.answers(output)

    def read(self, body: bytes, piece_bytes: int) -> Records | None:
        """The records of a large body in JSON; None when `decoder` has to read it."""
        return None if self.reader is None else self.reader.read(body, self.decoder.max_records, piece_bytes)

    def output_of(self, records: Records) -> np.ndarray:
        """What `run` answers to them, every number of it finite. Raises `Unpredictable`."""
        assert self.run_matrix is not None
        output = self.run_matrix(records.matrix)
        self._check_finite(output)
        return output

    def output(self, batch: ArrowBatch) -> np.ndarray:
        """What `run` answers, every number of it finite. Raises `Unpredictable`."""
        output = self.run(batch)
        self._check_finite(output)
        return output

    def answers(self, output: np.ndarray) -> tuple[list[Any], list[list[float]] | None]:
        """The predictions that an output stands for in JSON values, and the probabilities of a classifier."""
        if output.ndim == 1:
            return output.tolist(), None
        classes = self.classes
        return [classes[i] for i in output.argmax(axis=1).tolist()], output.tolist()

    def _check_finite(self, output: np.ndarray) -> None:
        import numpy as np

        finite = np.isfinite(output)
        if not finite.all():
            rows = finite if output.ndim == 1 else finite.all(axis=1)
            raise Unpredictable(self.version, int(np.argmin(rows)))


def load(
    name: str,
    wanted: LiveVersion,
    max_records: int,
    trusted: tuple[str, ...],
    extra: tuple[str, ...] = (),
    max_chars: int = CATEGORY_CHARS,
    engine: Literal["auto", "onnx"] = "auto",
) -> ServedModel:
    """A version from its artefact folder, digests verified; its requests may have the columns `extra` too.

    A category may have `max_chars` characters; `engine` "onnx" leaves compiled trees alone.

    Raises `training.artefact.ArtefactError` when the folder is not what its manifest says, `PrivateFeature` when the
    model was trained on a column that is not to be recorded as it is.
    """
    from training.artefact import verify

    folder = Path(wanted.path)
    manifest = verify(folder)
    schema = FeatureSchema.from_json((folder / "schema.json").read_bytes())
    if private := [column for column in extra if column in schema.names]:
        raise PrivateFeature(wanted.version, private)
    answers: Engine
    run: Run
    run_with_matrix: Callable[[Decoded], tuple[np.ndarray, np.ndarray]]
    reader = run_matrix = None
    if manifest.twin is not None:
        from training.twin import Twin

        twin = Twin(folder, manifest, engine)
        answers, run, run_with_matrix = twin.engine, twin.predict, twin.predict_with_matrix
        if not extra:  # such columns are no model's
            reader, run_matrix = twin.reader(schema, max_chars), twin.predict_matrix
    else:
        answers, run = "scikit-learn", _scikit_learn(folder, schema, trusted)
        run_with_matrix = _beside_numbers(run)
    return ServedModel(
        name=name,
        version=wanted.version,
        schema=schema,
        decoder=RequestDecoder(schema, max_records, extra, max_chars=max_chars),
        engine=answers,
        run=run,
        classes=schema.classes,
        folder=folder,
        row_by_row=manifest.twin is not None and manifest.twin.row_by_row,
        run_with_matrix=run_with_matrix,
        reader=reader,
        run_matrix=run_matrix,
    )


def _scikit_learn(folder: Path, schema: FeatureSchema, trusted: tuple[str, ...]) -> Run:
    """Prediction by scikit-learn, which is slower, for estimators whose ONNX twin was not proven equal."""
    from threadpoolctl import threadpool_limits

    from training.pipeline import predict
    from training.trust import load_pipeline

    pipeline = load_pipeline(folder, trusted)
    threadpool_limits(1)  # OpenMP threads of a 5 ms predict fight with the other workers for the same cores
    return lambda batch: predict(pipeline, batch.frame(), schema)


def _beside_numbers(run: Run) -> Callable[[Decoded], tuple[np.ndarray, np.ndarray]]:
    return lambda batch: (run(batch), batch.numeric())


def load_adaptation(wanted: LiveAdaptation, model: ServedModel) -> ServedModel:
    """The version `model` with this adaptation applied to what it answers.

    Raises `training.adaptation.AdaptationError` when the file is not what was announced, or not of this version.
    """
    from training.adaptation import AdaptationError, Adapter, decode

    data = Path(wanted.path).read_bytes()
    if hashlib.sha256(data).hexdigest() != wanted.digest:
        raise AdaptationError(f"{wanted.path} was changed: expected sha256 {wanted.digest}; delete it to have it again")
    found = decode(data)
    width = len(model.classes) if model.schema.task == "multiclass" else 1
    theirs = (found.version, found.number, found.task, found.width)
    ours = (model.version, wanted.number, model.schema.task, width)
    if theirs != ours:
        raise AdaptationError(
            f"{wanted.path} is of another model: its version, number, task and width are {theirs}, expected {ours}"
        )
    return model.adapted(Adapter(found))


@dataclass(slots=True)
class _Failure:
    reason: str
    times: int
    retry_at: float


@dataclass(slots=True)
class LiveModel:
    """The versions one worker holds, and the one it answers with.

    Args:
        max_records: rows in one request at most.
        trusted: types beyond scikit-learn's own that a skops artefact may hold.
        extra: columns that requests may have beside the features, for the record only.
        max_chars: characters of one category at most.
        engine: "onnx" leaves compiled trees alone.
        on_load: told ("loaded" | "failed", seconds it took to load) for the metrics.
        on_adaptation: the same of each adaptation.
    """

    max_records: int
    trusted: tuple[str, ...] = ()
    on_load: Callable[[str, float], None] = lambda result, seconds: None
    on_adaptation: Callable[[str, float], None] = lambda result, seconds: None
    extra: tuple[str, ...] = ()
    max_chars: int = CATEGORY_CHARS
    engine: Literal["auto", "onnx"] = "auto"
    current: ServedModel | None = None
    recent_body: bytes = b""
    _loaded: dict[int, ServedModel] = field(default_factory=dict)
    _adapted: dict[int, tuple[LiveAdaptation, ServedModel]] = field(default_factory=dict)
    _failures: dict[int, _Failure] = field(default_factory=dict)
    _unadapted: dict[LiveAdaptation, _Failure] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ready(self) -> tuple[int, ...]:
        """Versions that are loaded and warm."""
        return tuple(sorted(self._loaded))

    @property
    def failed(self) -> dict[str, str]:
        """Versions that would not load, with the reason."""
        return {str(version): failure.reason for version, failure in self._failures.items()}

    @property
    def unadapted(self) -> str:
        """Why an adaptation that should be in force is not; "" when nothing is wrong."""
        return "; ".join(f"{Path(wanted.path).stem}: {failure.reason}" for wanted, failure in self._unadapted.items())

    def get(self, version: int) -> ServedModel | None:
        """The held version (the champion, or the announced one) as it answers; None when it is not held."""
        adapted = self._adapted.get(version)
        return self._loaded.get(version) if adapted is None else adapted[1]

    def follow(self, live: Live, now: float) -> bool:
        """Load what `live` names, then serve its champion; True when something changed.

        Never raises for a version, or an adaptation of one, that cannot be loaded: what was there stays, the failure is
        counted and retried later and later (5 s doubling to 5 min).
        """
        with self._lock:
            changed = False
            for wanted in live.wanted():
                if wanted.version not in self._loaded and _may_try(self._failures.get(wanted.version), now):
                    changed |= self._load(live.model, wanted, now)
                changed |= self._adapt(wanted, now)
            champion = live.champion and self.get(live.champion.version)
            if champion and champion is not self.current:
                self.current = champion
                adaptation = "" if champion.adaptation is msgspec.UNSET else f", adaptation {champion.adaptation}"
                told: dict[str, Any] = {"event": "swap", "version": champion.version, "engine": champion.engine}
                told["adaptation"] = None if champion.adaptation is msgspec.UNSET else champion.adaptation
                words = (champion.name, champion.version, champion.engine, adaptation)
                logger.info("serving %s:%d (%s%s)", *words, extra=told)
                changed = True
            keep = {v.version for v in live.wanted()} | ({self.current.version} if self.current else set())
            self._loaded = {version: model for version, model in self._loaded.items() if version in keep}
            self._adapted = {version: adapted for version, adapted in self._adapted.items() if version in keep}
            self._failures = {version: failure for version, failure in self._failures.items() if version in keep}
            named = {wanted.adaptation for wanted in live.wanted()}
            self._unadapted = {wanted: failure for wanted, failure in self._unadapted.items() if wanted in named}
            return changed

    def _load(self, name: str, wanted: LiveVersion, now: float) -> bool:
        started = time.perf_counter()
        try:
            model = load(name, wanted, self.max_records, self.trusted, self.extra, self.max_chars, self.engine)
            self._check_compatible(model)
            warm_up(model, self.recent_body)
        except Exception as error:  # whatever is wrong with a version, the one in service goes on
            failure = _failed_again(self._failures.get(wanted.version), error, now)
            self._failures[wanted.version] = failure
            wait_s = failure.retry_at - now
            failed = (name, wanted.version, said(error), wait_s)
            logger.error("%s:%d does not load (%s); next try in %.0f s", *failed, extra={"version": wanted.version})
            self.on_load("failed", time.perf_counter() - started)
            return True
        self._failures.pop(wanted.version, None)
        self._loaded[wanted.version] = model
        self.on_load("loaded", time.perf_counter() - started)
        return True

    def _adapt(self, wanted: LiveVersion, now: float) -> bool:
        """Whether this version's answers changed: what `wanted` names is applied, or no longer."""
        model, adaptation = self._loaded.get(wanted.version), wanted.adaptation
        if adaptation is None or model is None:
            return self._adapted.pop(wanted.version, None) is not None
        before = self._adapted.get(wanted.version)
        if before is not None and before[0] == adaptation:
            return False
        if not _may_try(self._unadapted.get(adaptation), now):
            return False
        started = time.perf_counter()
        try:
            adapted = load_adaptation(adaptation, model)
            warm_up(adapted, self.recent_body)
        except Exception as error:  # whatever is wrong with it, what is in force goes on
            failure = self._unadapted[adaptation] = _failed_again(self._unadapted.get(adaptation), error, now)
            told = (adaptation.number, wanted.version, said(error), failure.retry_at - now)
            logger.error("adaptation %d of version %d does not load (%s); next try in %.0f s", *told)
            self.on_adaptation("failed", time.perf_counter() - started)
            return True
        self._unadapted.pop(adaptation, None)
        self._adapted[wanted.version] = (adaptation, adapted)
        self.on_adaptation("loaded", time.perf_counter() - started)
        return True

    def _check_compatible(self, model: ServedModel) -> None:
        if self.current is None or self.current.schema.digest == model.schema.digest:
            return
        theirs, ours = set(model.schema.names), set(self.current.schema.names)
        raise IncompatibleSchema(
            f"version {model.version} has another schema than version {self.current.version} in service: "
            f"missing {sorted(ours - theirs) or 'nothing'}, new {sorted(theirs - ours) or 'nothing'}, "
            f"task {model.schema.task}, classes {list(model.schema.classes)}"
        )


def _may_try(failure: _Failure | None, now: float) -> bool:
    return failure is None or now >= failure.retry_at


def _failed_again(before: _Failure | None, error: Exception, now: float) -> _Failure:
    times = before.times + 1 if before else 1
    backoff = min(FIRST_BACKOFF_S * 2 ** (times - 1), LONGEST_BACKOFF_S)
    return _Failure(f"{type(error).__name__}: {error}", times, now + backoff)


def warm_up(model: ServedModel, recent_body: bytes) -> None:
    """Predict a plain row, a batch, and what was asked last, so that no client pays for first times."""
    middle: dict[str, Any] = {}
    for feature in model.schema.features:
        if feature.kind == "categorical":
            fitting = (category for category in feature.categories if len(category) <= model.decoder.max_chars)
            middle[feature.name] = next(fitting, None)
        elif feature.kind == "boolean":
            middle[feature.name] = False
        elif feature.kind == "datetime":
            middle[feature.name] = "2000-01-01T00:00:00Z"
        else:
            middle[feature.name] = feature.minimum
    for records in ([middle], [middle] * min(32, model.decoder.max_records)):
        model.predict(model.decoder.decode(json.dumps({"records": records}).encode()))
    absent = dict.fromkeys(middle)
    for body in (json.dumps({"records": [absent]}).encode(), recent_body):
        with contextlib.suppress(ValueError, InvalidRequest):  # some models take no missing values: a 422, later
            model.predict(model.decoder.decode(body))
