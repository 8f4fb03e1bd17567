"""What the steps of the loop share: the values and places they need, no settings, no environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitoring.drift import DriftPolicy
from monitoring.quality import QualityPolicy
from training.data import Prepared
from training.data_checks import DataCheckPolicy
from training.experts import AdaptPolicy
from training.gate_policy import GatePolicy
from training.policy import RetrainPolicy
from training.registry import Registry
from training.rollout import WorkerState
from training.runs import Runs
from training.snapshots import Snapshots
from training.spec import JobResult, JobSpec
from training.split import TrainPolicy

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa

    from monitoring.schema import FeatureSchema
    from training.manifest import GateResult
    from training.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What the steps share. The holder of the lease makes one with its token (`dataclasses.replace` for the next)."""

    engine: sa.Engine
    registry: Registry
    runs: Runs
    token: int
    home: str = ""  # of the host it runs on; "": the only one
    who: str  # stands in the runs that the loop starts by itself
    seed: int
    # policies
    drift: DriftPolicy
    quality: QualityPolicy
    retrain: RetrainPolicy
    gates: GatePolicy
    training: TrainPolicy
    data_checks: DataCheckPolicy = field(default_factory=DataCheckPolicy)
    adapt: AdaptPolicy
    # places
    snapshots_dir: Path
    storage: Storage | None = None  # what replicas share; None: this host is alone
    work_dir: Path  # each job gets a folder in it for its time
    studies_dir: Path | None = None  # a search for parameters keeps its trials here, and goes on from them
    spool_dir: Path | None = None  # an erasure looks here too, and in the next two
    reports_dir: Path | None = None
    exports: str = ""  # folder or URL that `evergreen export` writes to
    exports_lock: Path | None = None  # held by whoever writes there
    # the world around
    source: Callable[[], Prepared]  # the data that the first version is trained from
    run_job: Callable[[JobSpec], JobResult]  # `subprocess_job` with a timeout, or `training.job.run`
    trusted_rows: Callable[[FeatureSchema], pd.DataFrame] | None = None  # a snapshot frame that only the owner writes
    rehearse: Callable[[Path], GateResult] | None = None  # the infra gate of a job's output folder; None: not asked
    live_workers: Callable[[], Sequence[WorkerState]]
    on_event: Callable[[str, Mapping[str, Any]], None]
    clock: Callable[[], float]  # seconds since 1970 UTC
    sleep: Callable[[float], None]
    # limits of a job
    threads: int = 1
    memory_mb: int = 0  # 0: unbounded
    nice: int = 10
    trusted: tuple[str, ...] = ()  # types a pushed model may hold beyond scikit-learn's own
    git: str | None = None

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self.snapshots_dir, self.storage)

    def job_terms(self) -> dict[str, Any]:
        """The fields of `JobSpec` that every job of this loop has: its policies, seed and bounds."""
        return {
            "studies": None if self.studies_dir is None else str(self.studies_dir),
            "gates": self.gates.model_dump(mode="json"),
            "adapt": self.adapt.model_dump(mode="json"),
            "quality": self.quality.model_dump(mode="json"),
            "trusted": self.trusted,
            "seed": self.seed,
            "threads": self.threads,
            "memory_mb": self.memory_mb,
            "nice": self.nice,
        }
