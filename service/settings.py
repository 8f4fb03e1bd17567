"""Every knob of Evergreen, once: its default, its unit and why it has that default.

Defaults < `evergreen.toml` < `EVERGREEN_<SECTION>__<KEY>`. A key nobody knows is an error that names the nearest right
one; so is a value of the wrong type. After `load` every path is absolute, so that a process started in another
directory sees the same files.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from monitoring.drift import DriftPolicy
from monitoring.errors import EvergreenError
from monitoring.fits import CATEGORY_CHARS, LONGEST_CATEGORY
from monitoring.log import LogPolicy
from monitoring.quality import QualityPolicy
from monitoring.retention import RetentionPolicy
from training.gates import GatePolicy
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

_SHOWN_CHARACTERS: Final = 60
_KUBERNETES_LINK: Final = re.compile(
    # A Kubernetes Service called "evergreen" (or "evergreen-…") puts these into every pod of its namespace.
    r"_SERVICE_(HOST|PORT(_\w+)?)=|_PORT=(tcp|udp|sctp)://|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?="
)


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
        description="path of a Parquet or CSV file, or `sample`; the first model is trained from it "
        "(the built-in sample stream needs no file)",
    )
    target: str = Field("", description="column; what is predicted (empty only for the sample)")
    time: str = Field("", description="column; orders the rows and is no feature (empty: row order is time order)")
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

    @model_validator(mode="after")
    def _a_file_needs_a_target(self) -> DataSettings:
        if self.source != SAMPLE and not self.target:
            raise ValueError(f'source "{self.source}" needs `target`, the column to predict')
        if self.target and self.target in (*self.ignore, self.time):
            raise ValueError(f'target "{self.target}" is also `time` or in `ignore`: take it out there')
        return self


class ServeSettings(Section):
    host: str = Field(
        "127.0.0.1", min_length=1, description="address; this machine only, 0.0.0.0 opens it to the network"
    )
    port: int = Field(3000, ge=1, le=65535, description="TCP port; BentoML's own default")
    workers: int = Field(2, ge=1, le=1024, description="processes; two, so that one may die while the other answers")
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


class TrainingSettings(TrainPolicy):
    threads: int = Field(1, ge=1, le=256, description="threads; training must not starve serving")
    memory_mb: int = Field(4096, ge=512, description="MB of private memory; a training that grows beyond it is ended")
    timeout_s: float = Field(1800.0, gt=0, description="seconds; a training that takes longer is ended, champion stays")
    nice: int = Field(
        15, ge=0, le=19, description="priority; serving comes first, at full load a training gets some 3 % of a core"
    )

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
    timeout_s: float = Field(5.0, gt=0, description="seconds; a slow receiver must not delay the loop")


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
    gates: GatePolicy = GatePolicy()
    training: TrainingSettings = TrainingSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    security: SecuritySettings = SecuritySettings()
    alerts: AlertSettings = AlertSettings()
    retention: RetentionPolicy = RetentionPolicy()
    export: ExportSettings = ExportSettings()
    privacy: PrivacySettings = PrivacySettings()

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
    def pushes_dir(self) -> Path:
        """Pushed files until their run is over; who writes one holds `flock` on it until its run is queued."""
        return self.var / "pushes"

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

    def exports(self) -> dict[str, str]:
        """What a child process needs, beside its parent's environment, to load these settings from any directory."""
        variables = {HOME_VARIABLE: str(self.home), "BENTOML_HOME": str(self.bentoml_folder)}
        if self.config_file is not None:
            variables[CONFIG_VARIABLE] = str(self.config_file)
        if self.data.source != SAMPLE:
            variables["EVERGREEN_DATA__SOURCE"] = self.data.source
        if self.store.var:
            variables["EVERGREEN_STORE__VAR"] = self.store.var
        return variables


SECTIONS: Final[dict[str, type[BaseModel]]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


class Row(NamedTuple):
    """One line of the settings table."""

    key: str
    """As in the file: `serve.port`."""
    default: str
    """As TOML."""
    description: str
    """Unit; why this default."""

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace(".", "__").upper()


def table() -> list[Row]:
    """Every setting with its default and its reason, in the order of the file."""
    return [
        Row(
            f"{section}.{key}",
            _toml(field.get_default(call_default_factory=True)),
            " ".join((field.description or "").split()),
        )
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
    ]


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process.

    `config` (else `EVERGREEN_CONFIG`, else `evergreen.toml` in `EVERGREEN_HOME` or the working directory when it is
    there) is read first, then the environment (`os.environ` unless given). Relative paths in the file are relative to
    the file, those in the environment to the working directory. Raises `SettingsError`.
    """
    environ = os.environ if environ is None else environ
    here = Path.cwd()
    home = here / Path(environ[HOME_VARIABLE]).expanduser() if environ.get(HOME_VARIABLE) else None
    file = _file(config, environ, home or here)
    home = home or (file.parent if file else here)

    values: dict[str, Any] = _read(file) if file else {}
    origin = {(section, key): str(file) for section, keys in values.items() for key in keys}
    for variable, section, key, value in _variables(environ):
        values.setdefault(section, {})[key] = value
        origin[section, key] = variable
    for section, key in (("data", "source"), ("store", "var")):
        value = values.get(section, {}).get(key)
        if isinstance(value, str) and value not in ("", SAMPLE):
            from_file = file is not None and origin[section, key] == str(file)
            folder = file.parent if file is not None and from_file else here
            values[section][key] = os.path.normpath(folder / Path(value).expanduser())

    top: dict[str, Any] = {"home": os.path.normpath(home), "config_file": str(file) if file else None}
    if environ.get("BENTOML_HOME"):
        top["bentoml_home"] = os.path.normpath(here / Path(environ["BENTOML_HOME"]).expanduser())
    try:
        # As JSON: strict about types (`port = true` is no port), yet lists may become tuples and strings paths.
        return Settings.model_validate_json(json.dumps(top | values, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError("\n".join(_problems(error, origin, str(file)))) from None


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


class ManagementToken(NamedTuple):
    value: str
    new: bool
    """Made by this call: whoever asked prints it, once."""


def management_token(settings: Settings) -> ManagementToken:
    """The bearer token of `/manage`: from the settings, else from `var/token`, which is made (0600) when missing.

    Any number of processes may call it at once: one makes the token, all get it. Raises `SettingsError` when the file
    can neither be read nor made.
    """
    given = settings.security.token.get_secret_value()
    if given:
        return ManagementToken(given, new=False)
    try:
        known = known_token(settings)
        if known:
            return ManagementToken(known, new=False)
        settings.token_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(settings.token_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            known = os.read(descriptor, 4096).decode().strip()
            if known:
                return ManagementToken(known, new=False)
            os.fchmod(descriptor, 0o600)
            token = secrets.token_urlsafe(32)
            os.write(descriptor, token.encode() + b"\n")
            os.fsync(descriptor)
            return ManagementToken(token, new=True)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SettingsError(
            f"cannot keep the management token in {settings.token_file}: {error.strerror}; "
            "make the folder writable or set [security] token"
        ) from None


def known_token(settings: Settings) -> str:
    """The management token as far as this machine knows it, "" when none was made yet; makes nothing."""
    given = settings.security.token.get_secret_value()
    if given:
        return given
    try:
        return settings.token_file.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SettingsError(
            f"cannot read the management token in {settings.token_file}: {error.strerror}; "
            "make it readable for this user or set [security] token"
        ) from None


def nearest(word: str, known: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """`, did you mean "x"?` for the known word most like `word`, else ""."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f', did you mean "{found[0]}"?' if found else ""


def _file(config: Path | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    if config is not None:
        asked, by = config, "--config"
    elif environ.get(CONFIG_VARIABLE):
        asked, by = Path(environ[CONFIG_VARIABLE]), CONFIG_VARIABLE
    else:
        usual = folder / FILE_NAME
        return Path(os.path.abspath(usual)) if usual.is_file() else None
    path = Path(os.path.abspath(asked.expanduser()))
    if not path.is_file():
        raise SettingsError(f"{by}: no file {path}; `evergreen init` writes one")
    return path


def _read(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    for section, keys in values.items():
        if section not in SECTIONS:
            inside = [f"[{name}] {section}" for name, model in SECTIONS.items() if section in model.model_fields]
            hint = f", did you mean {inside[0]}?" if inside else nearest(section, list(SECTIONS))
            raise SettingsError(f"{file}: unknown section [{section}]{hint or '; known: ' + ', '.join(SECTIONS)}")
        if not isinstance(keys, dict):
            raise SettingsError(f"{file}: {section} is a section: write [{section}] and its keys below it")
    return values


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    """(variable, section, key, value as JSON) of each setting in the environment."""
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in RESERVED_VARIABLES:
            continue
        section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
        model = SECTIONS.get(section)
        if model is None or key not in model.model_fields:
            if _KUBERNETES_LINK.search(f"{variable}={environ[variable]}"):
                continue
            known = [row.variable for row in table()] + list(RESERVED_VARIABLES)
            raise SettingsError(
                f"{variable}: no such setting{nearest(variable, known) or '; settings are EVERGREEN_<SECTION>__<KEY>'}"
            )
        yield variable, section, key, _from_text(environ[variable], model.model_fields[key])


def _from_text(text: str, field: FieldInfo) -> Any:
    """A variable's text as the JSON value its field wants; what cannot be read is left for the validation to name."""
    kinds = set(_kinds(field.annotation))
    if kinds & {list, tuple, set, frozenset} and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if type(None) in kinds and text.strip().lower() in ("", "none", "null"):
        return None
    if bool in kinds and text.strip().lower() in _SWITCHES:
        return _SWITCHES[text.strip().lower()]
    if kinds & {int, float, bool, list, tuple, dict, set, frozenset}:
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return text if isinstance(value, str) else value
    return text


_SWITCHES: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _kinds(annotation: Any) -> Iterator[type]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif origin in (list, tuple, dict, set, frozenset):
        yield origin
    elif origin is not None:
        for argument in get_args(annotation):
            yield from _kinds(argument)
    elif isinstance(annotation, type):
        yield annotation


def _problems(error: ValidationError, origin: Mapping[tuple[str, str], str], file: str) -> Iterator[str]:
    seen = set()
    for problem in error.errors(include_url=False):
        place = tuple(str(part) for part in problem["loc"])
        section, key = (*place, "", "")[:2]
        if (section, key) in seen:  # one line a key, even when a union reports each of its members
            continue
        seen.add((section, key))
        where = origin.get((section, key)) or next((by for (s, _), by in origin.items() if s == section), file)
        name = where if where.startswith(PREFIX) else f"{where}: [{section}]" + (f" {key}" if key else "")
        if problem["type"] == "extra_forbidden":
            known = list(SECTIONS[section].model_fields) if section in SECTIONS else list(SECTIONS)
            elsewhere = [f"[{other}] {key}" for other, model in SECTIONS.items() if key in model.model_fields]
            hint = nearest(key, known) or (f", did you mean {elsewhere[0]}?" if elsewhere else "")
            yield f"{name}: no such setting{hint or '; known: ' + ', '.join(known)}"
        elif problem["type"] == "value_error":
            yield f"{name}: {problem['ctx']['error']}"
        else:
            yield f"{name}: {_expected(problem['msg'])}, got {_shown(problem['input'], section, key)}"


def _expected(message: str) -> str:
    text = message.removeprefix("Input should be a valid ").removeprefix("Input should be ")
    if text == message:
        return message
    text = _IN_OUR_WORDS.get(text.split(",")[0], text)
    return f"expected a value {text}" if text.startswith(("greater", "less")) else f"expected {text}"


_IN_OUR_WORDS: Final = {
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
}


def _shown(value: Any, section: str, key: str) -> str:
    if (section, key) in (("security", "token"), ("store", "url"), ("alerts", "webhook_url")):
        return "a value that is not shown"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _toml(value: Any) -> str:
    if isinstance(value, SecretStr):
        return '""'
    if value is None:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, (tuple, list, set, frozenset)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:_}"
    return json.dumps(value, ensure_ascii=False)
