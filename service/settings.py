"""Every setting of Evergreen, once: its default, its unit and why it has that default.

`service/configuration.py` reads them from `evergreen.toml` and the environment.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from monitoring.alerts import signing_key
from monitoring.drift import DriftPolicy
from monitoring.errors import EvergreenError
from monitoring.fits import CATEGORY_CHARS, LONGEST_CATEGORY
from monitoring.log import LogPolicy
from monitoring.messages import LoggingPolicy
from monitoring.quality import QualityPolicy
from monitoring.retention import RetentionPolicy
from monitoring.traces import TracePolicy
from training.data_checks import DataCheckPolicy
from training.experts import AdaptPolicy
from training.gate_policy import GatePolicy
from training.known_types import PACKAGE
from training.policy import RetrainPolicy
from training.split import TrainPolicy

PREFIX: Final = "EVERGREEN_"
FILE_NAME: Final = "evergreen.toml"
Scope = Literal["predict", "feedback", "read", "push", "operate"]
"""What a token may do."""
SAMPLE: Final = "sample"
"""The data source that needs no file: the built-in stream of `service/sample.py`."""

CONFIG_VARIABLE: Final = "EVERGREEN_CONFIG"
HOME_VARIABLE: Final = "EVERGREEN_HOME"
RUN_DIR_VARIABLE: Final = "EVERGREEN_RUN_DIR"
ROLE_VARIABLE: Final = "EVERGREEN_ROLE"
TRACED_VARIABLE: Final = "EVERGREEN_TRACED"
RESERVED_VARIABLES: Final = (CONFIG_VARIABLE, HOME_VARIABLE, RUN_DIR_VARIABLE, ROLE_VARIABLE, TRACED_VARIABLE)
"""Variables that are no settings: where and as what a process runs, not how."""


class SettingsError(EvergreenError, ValueError):
    """Raised when the configuration cannot be used; the message names file or variable, key, value and remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _row_mark(value: str) -> str:
    if value:
        row_at(value, 100)
    return value


def _text_of_number(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


RowMark = Annotated[str, BeforeValidator(_text_of_number), AfterValidator(_row_mark)]
"""A row count ("2000", 2000) or a share of all rows ("20%"); "" where none was given."""


class ModelSettings(Section):
    name: str = Field(
        "evergreen",
        pattern=r"^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$",
        description="name; the model's name in the model store, in answers and in the V2 protocol",
    )
    seed: int = Field(0, ge=0, description="number; makes a training repeatable, change it to see how much luck it was")


class DataSettings(Section):
    source: str = Field(
        SAMPLE,
        min_length=1,
        description="Parquet or CSV file (packed or not), folder, glob or fsspec URL; or a database's URL and a query; "
        "or `sample`, the built-in stream; the first model is trained from it",
    )
    target: str = Field("", description="column; what is predicted (empty only for the sample)")
    time: str = Field("", description="column; orders the rows and is no feature (empty: row order is time order)")
    shuffle: bool = Field(
        False,
        description="switch; rows in random order, by model.seed; for a file that is sorted by target and has no time",
    )
    ignore: tuple[str, ...] = Field(
        (), description="columns; known only after the prediction, copies of the label, ids: never features"
    )
    task: Literal["auto", "binary", "multiclass", "regression"] = Field(
        "auto", description="kind of prediction; auto reads it off the target's values"
    )
    first: RowMark = Field(
        "", description='share ("20%") or rows; the part of the source that trains the first model (empty: all of it)'
    )

    sensitive: tuple[str, ...] = Field(
        (), description="features; the gates compare quality within each of their groups too, as with gates.sensitive"
    )
    trusted_holdout: str = Field(
        "",
        description="path of a Parquet or CSV file with the features and the target, which trains nothing; a candidate "
        "that is probably worse than the champion on its rows is refused, whatever the record's labels say (empty: "
        "none)",
    )

    @model_validator(mode="after")
    def _a_file_needs_a_target(self) -> DataSettings:
        if self.source != SAMPLE and not self.target:
            raise ValueError(f'source "{self.source}" needs `target`, the column to predict')
        if self.target and self.target in (*self.ignore, self.time):
            raise ValueError(f'target "{self.target}" is also `time` or in `ignore`: take it out there')
        if self.shuffle and self.time:
            raise ValueError(f'`shuffle` would undo the order of time "{self.time}": take one of the two out')
        return self


class ServeSettings(Section):
    host: str = Field(
        "127.0.0.1", min_length=1, description="address; this machine only, 0.0.0.0 opens it to the network"
    )
    port: int = Field(3000, ge=1, le=65535, description="TCP port; BentoML's own default")
    workers: int = Field(2, ge=1, le=1024, description="processes; two, so that one may die while the other answers")
    engine: Literal["auto", "onnx"] = Field(
        "auto",
        description="what answers for a model of trees; auto: the compiled engine where it is built and was proved to "
        "give scikit-learn's numbers, else ONNX; onnx: ONNX alone",
    )
    max_records: int = Field(10_000, ge=1, description="rows a request; keeps one request below about a second")
    max_category_chars: int = Field(
        CATEGORY_CHARS,
        ge=1,
        le=LONGEST_CATEGORY,
        description="characters of one category; more is free text, of which a check would hold a thousand rows",
    )
    max_request_bytes: int = Field(
        16 * 2**20, ge=1024, description="bytes; 10,000 rows of about 1.6 KB, checked before anything is decoded"
    )
    max_in_flight: int = Field(
        64, ge=1, description="requests a worker; beyond it 503 with Retry-After, so that waiting stays bounded"
    )
    stop_timeout_s: float = Field(
        20.0, gt=0, description="seconds; in-flight requests finish, shorter than Kubernetes' 30 s of grace"
    )
    drain_timeout_s: float = Field(
        0.0,
        ge=0,
        description="seconds beyond stop_timeout_s; a server that stops goes on storing what is left in its spool, and "
        "waits for a store that is away: for a host that does not come back (0: it waits for the next start)",
    )
    read_timeout_s: float = Field(
        10.0, gt=0, description="seconds; from a request's first byte to its last (408), and to the first of all"
    )
    max_pending_bytes: int = Field(
        24 * 2**20,
        ge=2**16,
        description="bytes a worker; bodies not whole yet, or waiting for their turn: above it 503; room for one of "
        "max_request_bytes and many small ones",
    )
    max_connections: int = Field(
        4096, ge=16, description="connections a worker; above it those that have rested longest are closed"
    )
    request_timeout_s: float = Field(
        10.0, gt=0, description="seconds; short, because a server's timers cost memory for as long as they run"
    )
    poll_interval_s: float = Field(
        0.1, gt=0, le=60, description="seconds; how often a worker looks for another live version (one `stat` call)"
    )


class StoreSettings(Section):
    url: str = Field(
        "", repr=False, description="database URL; empty: SQLite under `var` (else `postgresql+psycopg://…`)"
    )
    var: str = Field("", description="folder; record, models and token live here (empty: `var` beside the file)")
    artefacts: str = Field(
        "",
        description="folder or fsspec URL where replicas on several hosts share versions and snapshots, such as "
        "`s3://bucket/evergreen`; what a host keeps is then a cache (empty: this host alone)",
    )
    cache_bytes: int = Field(
        10 * 2**30,
        ge=0,
        description="bytes; of what replicas share a host keeps so much, and always what an alias names or a training "
        "needs; what has been there longest goes first and is fetched again when it is asked for",
    )


class TrainingSettings(TrainPolicy):
    threads: int = Field(1, ge=1, le=256, description="threads; training must not starve serving")
    memory_mb: int = Field(4096, ge=512, description="MB of private memory; a training that grows beyond it is ended")
    timeout_s: float = Field(1800.0, gt=0, description="seconds; a training that takes longer is ended, champion stays")
    nice: int = Field(
        15, ge=0, le=19, description="priority; serving comes first, at full load a training gets some 3 % of a core"
    )

    @model_validator(mode="after")
    def _a_search_ends_before_its_training(self) -> TrainingSettings:
        if self.trials and self.tune_seconds >= self.timeout_s:
            raise ValueError(
                f"`tune_seconds` {self.tune_seconds:g} leaves no time for the rest of a training, which is ended after "
                f"`timeout_s` {self.timeout_s:g}: lower the one or raise the other"
            )
        return self

    @property
    def policy(self) -> TrainPolicy:
        """The part that the training itself reads."""
        return TrainPolicy(**{name: getattr(self, name) for name in TrainPolicy.model_fields})


class ScheduleSettings(Section):
    check_interval_s: float = Field(60.0, gt=0, description="seconds; drift and quality are looked at this often")
    drain_interval_s: float = Field(0.25, gt=0, description="seconds; how soon an answered row is in the store")
    sync_interval_s: float = Field(
        0.2, gt=0, description="seconds; store's aliases → live.json, workers' state → store"
    )
    lease_s: float = Field(10.0, ge=1, description="seconds; how soon another replica takes over scheduled work")


class SecuritySettings(Section):
    token: SecretStr = Field(
        SecretStr(""), description="bearer token of /manage; empty: made at first start, kept in `var/token` (0600)"
    )
    key: SecretStr = Field(
        SecretStr(""),
        description="text of 32 characters or more, the same on every replica; wraps the keys of hashed columns and of "
        "the page's sessions in the store, so that replicas share them (empty: each host keeps its own, in `var`)",
    )
    former_key: SecretStr = Field(
        SecretStr(""), description="text; the `key` before, while it is changed: what it wrapped is wrapped anew"
    )
    data_plane: Literal["auto", "open", "tokens"] = Field(
        "auto",
        description="who may predict and send labels without a token; auto: clients on this machine, open: everybody, "
        "tokens: nobody",
    )
    rows_per_hour: int = Field(0, ge=0, description="rows; what one source may have predicted in an hour (0: any)")
    labels_per_hour: int = Field(0, ge=0, description="labels; what one source may send in an hour (0: any)")
    max_push_bytes: int = Field(
        2**30, ge=2**20, description="bytes; the largest model file that `/manage/models` takes"
    )
    trusted_types: tuple[str, ...] = Field(
        (), description="type names; what a pushed model may hold beyond scikit-learn's own (skops trust list)"
    )
    trusted_packages: tuple[str, ...] = Field(
        (),
        description="installed packages, such as xgboost; a pushed model may hold what they define, and their code "
        "runs: for estimators and transformers that are not scikit-learn's",
    )

    @field_validator("trusted_packages")
    @classmethod
    def _are_packages(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        for package in packages:
            if not package.isidentifier() or package in sys.stdlib_module_names or package == "numpy":
                raise ValueError(f"{package!r}: expected the import name of an installed package, such as xgboost")
        return packages

    @property
    def trusted(self) -> tuple[str, ...]:
        """What a pushed model may hold, as `training.known_types.untrusted` takes it."""
        return (*self.trusted_types, *(f"{package}{PACKAGE}" for package in self.trusted_packages))

    @field_validator("key", "former_key")
    @classmethod
    def _cannot_be_guessed(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key.get_secret_value()) < 32:
            raise ValueError("too short, as it could be guessed: `openssl rand -hex 32` makes one")
        return key

    @model_validator(mode="after")
    def _was_another(self) -> SecuritySettings:
        if self.former_key.get_secret_value() and self.former_key == self.key:
            raise ValueError("`former_key` is the same as `key`: it is the one before, or is left out")
        if self.former_key.get_secret_value() and not self.key.get_secret_value():
            raise ValueError("`former_key` is given, but no `key` that takes its place")
        return self

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", token.get_secret_value()):
            raise ValueError("a token is letters, digits and punctuation without spaces (it travels in a header)")
        return token


class ExportSettings(Section):
    to: str = Field(
        "", description="folder or fsspec URL; where `evergreen export` writes and erasures look (empty: nowhere)"
    )


class PrivacySettings(Section):
    hash: tuple[str, ...] = Field(
        (), description="columns beside the features; recorded only as a keyed hash (key in `var/privacy.key`, 0600)"
    )
    drop: tuple[str, ...] = Field((), description="columns beside the features; accepted in requests, never recorded")

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.hash, *self.drop)

    @model_validator(mode="after")
    def _one_of_both(self) -> PrivacySettings:
        if twice := [name for name in dict.fromkeys(self.names) if self.names.count(name) > 1]:
            raise ValueError(f"{', '.join(twice)} is named twice: a column is either hashed or dropped")
        return self


class AlertSettings(Section):
    webhook_url: str = Field(
        "", repr=False, description="URL; gets a POST for each alert (empty: alerts are only logged)"
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="text, or `whsec_` and base64; signs each alert, as standardwebhooks.com has it (empty: unsigned)",
    )
    timeout_s: float = Field(5.0, gt=0, description="seconds; a slow receiver must not delay the loop")

    @field_validator("webhook_secret")
    @classmethod
    def _makes_a_key(cls, secret: SecretStr) -> SecretStr:
        signing_key(secret.get_secret_value())
        return secret


class Settings(BaseModel):
    """All settings, frozen. `home` is the folder that holds `var`; `Settings(home=path)` is all defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    config_file: Path | None = None
    bentoml_home: Path | None = None

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    serve: ServeSettings = ServeSettings()
    store: StoreSettings = StoreSettings()
    log: LogPolicy = LogPolicy()
    drift: DriftPolicy = DriftPolicy()
    quality: QualityPolicy = QualityPolicy()
    retrain: RetrainPolicy = RetrainPolicy()
    data_checks: DataCheckPolicy = DataCheckPolicy()
    gates: GatePolicy = GatePolicy()
    training: TrainingSettings = TrainingSettings()
    adapt: AdaptPolicy = AdaptPolicy()
    schedule: ScheduleSettings = ScheduleSettings()
    security: SecuritySettings = SecuritySettings()
    alerts: AlertSettings = AlertSettings()
    retention: RetentionPolicy = RetentionPolicy()
    export: ExportSettings = ExportSettings()
    privacy: PrivacySettings = PrivacySettings()
    logging: LoggingPolicy = LoggingPolicy()
    trace: TracePolicy = TracePolicy()

    @property
    def var(self) -> Path:
        return self.home / (self.store.var or "var")

    @property
    def bentoml_folder(self) -> Path:
        """What `BENTOML_HOME` is for this server tree."""
        return self.bentoml_home or self.var / "bentoml"

    @property
    def models_dir(self) -> Path:
        return self.bentoml_folder / "models"

    @property
    def spool_dir(self) -> Path:
        return self.var / "spool"

    @property
    def snapshots_dir(self) -> Path:
        return self.var / "snapshots"

    @property
    def reports_dir(self) -> Path:
        """Pages of checks, and which are asked for: `service/report_files.py`."""
        return self.var / "reports"

    @property
    def work_dir(self) -> Path:
        """A folder for each job of this host while it is at work."""
        return self.var / "work"

    @property
    def pushes_dir(self) -> Path:
        """Pushed files until their run is over; who writes one holds `flock` on it until its run is queued."""
        return self.var / "pushes"

    @property
    def adaptations_dir(self) -> Path:
        """The adaptations in force, a file each: what `live_file` names."""
        return self.var / "adaptations"

    @property
    def live_file(self) -> Path:
        return self.var / "live.json"

    @property
    def token_file(self) -> Path:
        return self.var / "token"

    @property
    def tokens_file(self) -> Path:
        return self.var / "tokens.json"

    @property
    def store_url(self) -> str:
        scheme, found, path = self.store.url.partition(":///")
        if found and scheme.startswith("sqlite") and path and not path.startswith(("/", ":", "file:")):
            return f"{scheme}:///{self.home / path}"  # a relative file must not move with the working directory
        return self.store.url or f"sqlite:///{self.var / 'evergreen.db'}"

    @property
    def keeps_keys_alone(self) -> bool:
        """Whether this host's keys of hashed columns and of sessions are nobody else's."""
        return self.store_url.startswith("sqlite") and not self.security.key.get_secret_value()

    @property
    def exports_url(self) -> str:
        """Where exports lie, absolute; "" when no place was configured."""
        to = self.export.to
        return to if not to or "://" in to else str(self.home / Path(to).expanduser())

    @property
    def exports_lock(self) -> Path:
        """Held by an export or an erasure while it is at work."""
        return self.var / "export.lock"

    @property
    def address(self) -> str:
        """The URL under which this machine reaches the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.serve.host, self.serve.host)
        return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self.serve.port}"

    def for_children(self) -> dict[str, str]:
        """What a child process needs, beside its parent's environment, to load these settings from any directory."""
        variables = {HOME_VARIABLE: str(self.home), "BENTOML_HOME": str(self.bentoml_folder)}
        if self.config_file is not None:
            variables[CONFIG_VARIABLE] = str(self.config_file)
        if self.data.source != SAMPLE:
            variables["EVERGREEN_DATA__SOURCE"] = self.data.source
        if self.data.trusted_holdout:
            variables["EVERGREEN_DATA__TRUSTED_HOLDOUT"] = self.data.trusted_holdout
        if self.store.var:
            variables["EVERGREEN_STORE__VAR"] = self.store.var
        return variables


SECTIONS: Final[dict[str, type[BaseModel]]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


def row_at(mark: str, total: int) -> int:
    """The row a mark like `"20%"` or `"3000"` stands for in `total` rows, 0 … total.

    >>> row_at("20%", 1000), row_at("3000", 1000), row_at("7", 1000)
    (200, 1000, 7)
    """
    number, percent = (mark[:-1], True) if mark.endswith("%") else (mark, False)
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if not value >= 0 or (percent and value > 100):  # NaN is not >= 0
        raise ValueError(f'expected rows ("3000") or a share ("20%"), got "{mark}"')
    return min(total, round(value / 100 * total) if percent else int(value))
