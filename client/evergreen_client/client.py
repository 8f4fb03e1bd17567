"""`Client`: predictions, labels and the management of a running Evergreen.

Made from `async_client.py` by `python client/unasync.py`: edit that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import httpx

import evergreen_client.calls as calls
from evergreen_client.answers import Answers, Wanted, read_schema
from evergreen_client.calls import Call
from evergreen_client.errors import (
    Busy,
    EvergreenClientError,
    NotEvergreen,
    NotFinished,
    Refused,
    StatusError,
    Unreachable,
    error_of,
)
from evergreen_client.frames import is_frame, records_of
from evergreen_client.managed import (
    Adaptations,
    Check,
    Comparison,
    ComparisonHere,
    Models,
    Prediction,
    Replica,
    Run,
    Status,
    VersionInFull,
)
from evergreen_client.repeats import pause_before_repeat

if TYPE_CHECKING:
    import pandas as pd

    from evergreen_client.files import BadRows, Dialect, Progress, Scored

T = TypeVar("T")


class Client:
    """A running service at `url`, over a few connections that are kept.

    Args:
        url: its address, such as `http://127.0.0.1:3000`.
        token: needed for `/manage`, and from other machines for all but the health routes; its name stands in each run.
        timeout_s: seconds that connecting, sending, or waiting for the answer may take, each.
        retry_s: seconds during which a request may be sent again that failed on its way, or that the service was too
            busy for; `repeats.py` says which ones are. 0: none is.
        connections: the most that are open at a time.

    Every call raises an `EvergreenClientError`: `Unreachable` when there is no answer, a `StatusError` for an answer
    other than 2xx, `NotEvergreen` for an answer that no Evergreen gives. Raises `ValueError` for a token that no header
    can carry.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        connections: int = 100,
    ) -> None:
        self.url = url.rstrip("/")
        self.retry_s = retry_s
        self.repeated = 0
        """Requests that were sent again, since this client was made."""
        self._wanted: Wanted | None = None
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=calls.IDLE_S
        )
        try:
            # `trust_env=False`: a proxy of the environment has no part in reaching one's own service.
            self._http = httpx.Client(
                base_url=self.url,
                headers=calls.authorization(token),
                timeout=timeout_s,
                limits=limits,
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise Unreachable(url, str(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Predictions

    def predict(
        self,
        records: Sequence[Mapping[str, Any]] | pd.DataFrame,
        ids: Sequence[str] | None = None,
        *,
        record: bool = True,
        warnings: bool = False,
    ) -> Answers:
        """The answers to `records`, in their order: all of one version, and all or none.

        Args:
            records: one mapping of features to values a row, or a pandas DataFrame with a column for each feature. Of a
                DataFrame the features that `/schema` names are sent, other columns stay here.
            ids: one text a row, under which its label will be sent; made here when there are none (UUID version 7). An
                id that was used before stands for the newest row that has it.
            record: False for a try-out: it is answered, and not recorded; a label for it finds no prediction.
            warnings: whether the answer tells which categories and numbers lie outside what training saw.

        Raises `Refused` (its `row` and `column` say what has to be changed), `TooLarge`, and `BadRecords` before
        anything is sent.
        """
        if is_frame(records):
            wanted = self.wanted()
            records = records_of(records, wanted.kinds)
        try:
            return self._do(calls.predict(records, ids, record, warnings))
        except Refused:
            self._wanted = None  # a new version may want other features
            raise

    def predict_file(
        self,
        source: str | Path,
        out: str | Path,
        *,
        ids: str = "",
        keep: Sequence[str] = (),
        bad_rows: BadRows = "stop",
        record: bool = True,
        batch_rows: int = 0,
        connections: int = 4,
        run: str = "",
        force: bool = False,
        dialect: Dialect | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Scored:
        """Answer every row of a file, in its order and each row once, into the file `out`; pyarrow is needed.

        Killed, or ended by an error, the same call goes on where it was. Give the client a `retry_s` that outlasts a
        restart of the service.

        Args:
            source: CSV or Parquet file, folder of such files, glob, or fsspec URL.
            out: `.csv` or `.parquet`; it appears once it is complete. A line for each row: id, prediction, the
                probability of each class, version, adaptation.
            ids: column of the ids, in which each stands once; "": ids are made of `run` and the number of the row.
            keep: columns of the source that `out` has, too.
            bad_rows: "stop" raises `BadRow` at a row that cannot be answered; "skip" leaves its answer empty and lists
                it in `out` + `.refused.csv`.
            record: False for a try-out, as of `predict`.
            batch_rows: rows a request; 0: chosen.
            connections: requests under way at a time.
            run: what made ids begin with; "": chosen from the time.
            force: begin anew and replace `out`.
            dialect: how a CSV file is written, when not with commas and in UTF-8.
            on_progress: called after each batch; `evergreen_client.files.telling` makes one that shows a bar.

        Raises a `FileError`, and what `predict` raises.
        """
        import evergreen_client.files as files

        asked = files.Asked(Path(out), ids, tuple(keep), bad_rows, batch_rows, connections, run, record, force)
        return files.answered_in_threads(self, str(source), asked, dialect, on_progress)

    def feedback(self, labels: Sequence[Mapping[str, Any]]) -> int:
        """How many of `labels` (`{"id", "label", "observed_at"?}`) were accepted: all of them, or none."""
        return self._do(calls.feedback(labels))

    def schema(self) -> dict[str, Any]:
        """The live features and target as JSON Schema."""
        return self._do(calls.get("/schema", dict))

    def wanted(self) -> Wanted:
        """What the service expects to be sent; asked for once, and again after a refusal."""
        if self._wanted is None:
            self._wanted = read_schema(self.schema())
        return self._wanted

    def metrics(self) -> str:
        """The metrics page, Prometheus text."""
        return self._do(calls.text("/metrics"))

    def readiness(self) -> str:
        """ "" when the service answers predictions, else why it does not. Raises `Unreachable`."""
        try:
            self._do(calls.text("/readyz", repeat="never"))
        except StatusError as error:
            return str(error)
        return ""

    # Management

    def status(self) -> Status:
        """What runs where: aliases, workers, record, last check, last runs."""
        return self._do(calls.get("/manage/status", Status))

    def prediction(self, id: str) -> Prediction:
        """What is known of a prediction: when, by which version, and its labels; also of an id that nobody knows."""
        return self._do(calls.get(f"/manage/labels/{quote(id, safe='')}", Prediction))

    def models(self) -> Models:
        """`{"model", "champion", "previous", "announced", "models": [...]}`, the newest version first."""
        return self._do(calls.get("/manage/models", Models))

    def version(self, version: int) -> VersionInFull:
        """One version with its manifest, its lineage, its tags and notes."""
        return self._do(calls.get(f"/manage/models/{version}", VersionInFull))

    def compare(self, a: int, b: int, rows: int = 0) -> ComparisonHere:
        """Two versions side by side; what they predict (on `rows` rows) is not asked over the wire: None."""
        found = self._do(calls.get(f"/manage/models/{a}/compare/{b}", Comparison))
        return {**found, "predictions": None}

    def tag(self, version: int, add: Sequence[str], remove: Sequence[str] = (), why: str = "") -> int:
        """The run that put these tags on the version, and took those off."""
        body = {"add": list(add), "remove": list(remove), "why": why}
        return self._do(calls.write(f"/manage/models/{version}/tags", body))

    def note(self, version: int, text: str) -> int:
        """The run that holds the note."""
        return self._do(calls.write(f"/manage/models/{version}/notes", {"text": text}))

    def runs(
        self, limit: int = 20, *, kind: str = "", trigger: str = "", since: float | None = None, folded: bool = False
    ) -> list[Run]:
        """The newest `limit` runs, newest first; `folded`: checks in a row that said "no" in the same way are one."""
        asked = {"limit": limit, "kind": kind, "trigger": trigger, "since": since, "folded": folded}
        return self._do(calls.get_list("/manage/runs", "runs", Run, asked))

    def drift(self, limit: int = 1) -> list[Check]:
        """The newest `limit` checks: drift by feature, quality, what was decided."""
        return self._do(calls.get_list("/manage/drift", "checks", Check, {"limit": limit}))

    def run(self, number: int) -> Run:
        """One run with its full record of why."""
        return self._do(calls.get(f"/manage/runs/{number}", Run))

    def retrain(self, why: str = "") -> int:
        """The number of the run that was queued."""
        return self._do(calls.write("/manage/retrain", {"why": why}))

    def rollback(self, why: str = "") -> int:
        """The previous champion becomes the champion again; the queued run."""
        return self._do(calls.write("/manage/rollback", {"why": why}))

    def pause(self, why: str = "") -> int:
        """No check, training or promotion until `resume`; predictions go on. The queued run."""
        return self._do(calls.write("/manage/pause", {"why": why}))

    def resume(self, why: str = "") -> int:
        """The loop goes on after a `pause`; the queued run."""
        return self._do(calls.write("/manage/resume", {"why": why}))

    def erase(self, ids: Sequence[str] = (), *, feature: str = "", value: Any = None, why: str = "") -> int:
        """Forget predictions by `ids`, or everyone whose record has this `value` of `feature`; the queued run."""
        whom = {"ids": list(ids)} if ids else {"feature": feature, "value": value}
        return self._do(calls.write("/manage/erasures", {**whom, "why": why}))

    def replicas(self) -> list[Replica]:
        """Every home of the deployment, what runs there, and who leads."""
        return self._do(calls.get_list("/manage/replicas", "replicas", Replica))

    def gone(self, home: str, why: str = "") -> int:
        """A home does not come back; the queued run."""
        return self._do(calls.write(f"/manage/replicas/{quote(home, safe='')}/gone", {"why": why}))

    def adaptation(self, limit: int = 20) -> Adaptations:
        """`{"version", "enabled", "in_force", "adaptations": [...]}`, what happened last first."""
        return self._do(calls.get("/manage/adaptation", Adaptations, {"limit": limit}))

    def switch_adaptation(self, state: str, why: str = "") -> int:
        """`on` or `off`; the queued run."""
        return self._do(calls.write("/manage/adaptation", {"state": state, "why": why}))

    def promote(self, version: int, why: str = "") -> int:
        """This version becomes the champion; the queued run."""
        return self._do(calls.write(f"/manage/models/{version}/promote", {"why": why}))

    def push(self, model: bytes, why: str = "", trained_until: str = "") -> int:
        """Send a skops or ONNX file; the number of the run that will judge it, on rows after `trained_until` only."""
        return self._do(calls.push(model, why, trained_until))

    def wait(
        self,
        run: int,
        *,
        timeout_s: float = 3600.0,
        poll_s: float = 0.5,
        on_change: Callable[[Run], None] | None = None,
    ) -> Run:
        """The run once it is done or failed; `on_change` sees each state on the way.

        Raises `NotFinished` after `timeout_s`. It goes on waiting while the service restarts.
        """
        until = time.monotonic() + timeout_s
        state = ""
        while True:
            try:
                found = self.run(run)
            except (Unreachable, Busy):
                if time.monotonic() >= until:
                    raise
            else:
                if found["state"] != state:
                    state = found["state"]
                    if on_change is not None:
                        on_change(found)
                if state in calls.FINISHED:
                    return found
            if time.monotonic() >= until:
                raise NotFinished(run, state or "queued", timeout_s)
            time.sleep(poll_s)

    # The wire

    def _do(self, call: Call[T]) -> T:
        """What the call gives, sent again where that repeats nothing."""
        until = time.monotonic() + self.retry_s
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(call)
            except EvergreenClientError as error:
                pause = pause_before_repeat(error, call.repeat, tries, until - time.monotonic())
                if pause is None:
                    raise
            self.repeated += 1
            time.sleep(pause)

    def _once(self, call: Call[T]) -> T:
        try:
            answer = self._http.request(call.method, call.path, content=call.content, headers=dict(call.headers))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise calls.unreachable(self.url, error) from None
        except httpx.DecodingError as error:
            raise NotEvergreen(f"{self.url}{call.path}: {error}; is this its address?") from None
        if not answer.is_success:
            raise error_of(call.where, answer.status_code, answer.headers, answer.content)
        return call.answer(self.url, answer.content)
