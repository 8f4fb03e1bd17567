"""Every error of ours is an `EvergreenError`: its message says what happened, with which value, and what to do.

Where each of them is raised, and when, stands beside the code that raises it:

EvergreenError
    CannotGoOn
        ExportsBusy           monitoring/export.py
        LogHeld               monitoring/retention.py
        SchemaError           monitoring/feature.py
        FormatError           training/manifest.py
        ArtefactError         training/artefact.py
            NotInstalled      training/trust.py
            UntrustedModel    training/trust.py
        DataError             training/source.py
        StorageError          training/storage.py
        NotDrained            training/erasure.py
        NoPrevious            training/registry.py
        UnknownHome           training/homes.py
        HomeGone              training/homes.py
        HomeInUse             training/homes.py
        BadMark               training/marks.py
        NothingKnown          training/lineage.py
        CannotReproduce       training/reproduction.py
        UnknownAdaptation     training/adaptations.py
        UnknownVersion        training/registry.py
    InvalidRequest            monitoring/decode.py
    SpoolBusy                 monitoring/drain.py
    DrainFailed               monitoring/drain.py
    StoreTooNew               monitoring/store.py
    AdaptationError           training/adaptation.py
    SwitchedOff               training/adaptations.py
    JobError                  training/spec.py
        DataStopped           training/data_checks.py
    LeaseLost                 training/lease.py
    NoChampion                training/registry.py
    NotAnnounced              training/registry.py
    NoReport                  training/reporting.py
        RowsGone              training/reporting.py
    UnknownRun                training/runs.py
    UnloadableGraph           training/session.py
    WorkFailed                training/apart.py
    JobCrashed                training/subprocess_job.py
    JobStopped                training/subprocess_job.py
    DemoFailed                service/command/demo.py
    TrainRefused              service/command/first_version.py
    ExampleError              service/command/example.py
    InitError                 service/command/init.py
    RowsError                 service/command/rows.py
    NoStore                   service/command/versions.py
    TokenError                service/keys.py
    WrongKey                  service/wrapping.py
    Denied                    service/keys.py
    ServeError                service/place.py
    ReplayError               service/replay/stream.py
    IncompatibleSchema        service/serving/predictor.py
    PrivateFeature            service/serving/predictor.py
    Unpredictable             service/serving/predictor.py
    Reject                    service/serving/request.py
    OverLimit                 service/serving/sources.py
    SettingsError             service/settings.py

A test holds this tree equal to the code.
"""

from __future__ import annotations

import re
from typing import Final

_INDEX: Final = re.compile(r"\[\d+\]")
_VALUE: Final = re.compile(r", got .*|\"(?:[^\"\\]|\\.)*\"|'[^']*'", re.DOTALL)


class EvergreenError(Exception):
    """Raised for what a person or a program can do something about; the message says what."""


class CannotGoOn(EvergreenError):
    """Raised when a step of the loop cannot be done as asked: its run ends as refused, and the champion stays."""


def in_short(error: BaseException) -> str:
    """What a library's exception says, on one line of at most 200 characters; its class when it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def first_line(error: BaseException) -> str:
    """What a database says, in short: SQLAlchemy and psycopg quote the row behind the first line."""
    told = getattr(error, "orig", None) or error
    return in_short(Exception(str(told).partition("\n")[0] or type(told).__name__))


def without_values(message: str) -> str:
    """A message of ours on at most 200 characters, without what it quotes of a row.

    >>> without_values('records[3].age: expected a number, got "old"')
    'records[].age: expected a number'
    """
    return _INDEX.sub("[]", _VALUE.sub("", message))[:200]
