"""A small client of a running Evergreen: predict, send labels back, manage.

with Client("http://127.0.0.1:3000", token) as evergreen:
    answer = evergreen.predict([{"age": 41, ...}])
    evergreen.feedback([{"id": answer["ids"][0], "label": 1}])
    run = evergreen.wait(evergreen.retrain("the fee model changed"))
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import httpx
import msgspec

from monitoring.errors import EvergreenError

FINISHED: Final = ("done", "failed")
"""States in which a run no longer changes."""


class ServiceError(EvergreenError):
    """Raised when the service answered with an error; the message is the service's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(ServiceError):
    """Raised when nothing answers at the URL."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            0, f"no Evergreen answers at {url} ({why}): start one with `evergreen serve`, or give its --url"
        )


class NotFinished(ServiceError):
    """Raised when a run took longer than the caller would wait; the run goes on."""

    def __init__(self, run: int, state: str, waited_s: float) -> None:
        super().__init__(0, f"run {run} is still {state} after {waited_s:.0f} s; `evergreen runs {run}` shows it later")


class Client:
    """One connection to a service. `token` is needed for `/manage`, and from other machines for all but the health
    routes; its name stands in each run's row.

    Every call raises `Unreachable` when nothing answers, `ServiceError` (with `.status`) for an answer other than 2xx.
    """

    def __init__(self, url: str, token: str = "", *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            # `trust_env=False`: a proxy of the environment has no part in reaching one's own service.
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        except httpx.InvalidURL as error:
            raise Unreachable(url, str(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Predictions

    def predict(self, records: Sequence[Mapping[str, Any]], ids: Sequence[str] | None = None) -> dict[str, Any]:
        """`{"model", "version", "ids", "predictions", "probabilities"?, "classes"?}` for `records`, in their order."""
        body: dict[str, Any] = {"records": records}
        if ids is not None:
            body["ids"] = ids
        return self._object("POST", "/predict", body)

    def feedback(self, labels: Sequence[Mapping[str, Any]]) -> int:
        """How many of `labels` (`{"id", "label", "observed_at"?}`) were accepted: all of them."""
        return int(self._object("POST", "/feedback", {"labels": labels})["accepted"])

    def schema(self) -> dict[str, Any]:
        """The live features and target as JSON Schema."""
        return self._object("GET", "/schema")

    def metrics(self) -> str:
        """The metrics page, Prometheus text."""
        return self._ask("GET", "/metrics").text

    def readiness(self) -> str:
        """ "" when the service answers predictions, else why it does not. Raises `Unreachable`."""
        try:
            self._ask("GET", "/readyz")
        except Unreachable:
            raise
        except ServiceError as error:
            return str(error)
        return ""

    # Management

    def status(self) -> dict[str, Any]:
        """What runs where: aliases, workers, record, last check, last runs."""
        return self._object("GET", "/manage/status")

    def models(self) -> dict[str, Any]:
        """`{"model", "champion", "previous", "announced", "models": [...]}`, the newest version first."""
        return self._object("GET", "/manage/models")

    def version(self, version: int) -> dict[str, Any]:
        """One version with its manifest, its lineage, its tags and notes."""
        return self._object("GET", f"/manage/models/{version}")

    def compare(self, a: int, b: int, rows: int = 0) -> dict[str, Any]:
        """Two versions side by side; what they predict (on `rows` rows) is not asked over the wire: None."""
        return {**self._object("GET", f"/manage/models/{a}/compare/{b}"), "predictions": None}

    def tag(self, version: int, add: Sequence[str], remove: Sequence[str] = (), why: str = "") -> int:
        """The run that put these tags on the version, and took those off."""
        return self._queued(
            "POST", f"/manage/models/{version}/tags", {"add": list(add), "remove": list(remove), "why": why}
        )

    def note(self, version: int, text: str) -> int:
        """The run that holds the note."""
        return self._queued("POST", f"/manage/models/{version}/notes", {"text": text})

    def runs(
        self, limit: int = 20, *, kind: str = "", trigger: str = "", since: float | None = None, folded: bool = False
    ) -> list[dict[str, Any]]:
        """The newest `limit` runs, newest first; `folded`: checks in a row that said "no" in the same way are one."""
        asked: dict[str, Any] = {"limit": limit, "kind": kind, "trigger": trigger, "since": since, "folded": folded}
        given = {name: value for name, value in asked.items() if value not in ("", None, False)}
        return list(self._object("GET", f"/manage/runs?{urlencode(given)}")["runs"])

    def drift(self, limit: int = 1) -> list[dict[str, Any]]:
        """The newest `limit` checks: drift by feature, quality, what was decided."""
        return list(self._object("GET", f"/manage/drift?limit={limit}")["checks"])

    def run(self, number: int) -> dict[str, Any]:
        """One run with its full record of why."""
        return self._object("GET", f"/manage/runs/{number}")

    def retrain(self, why: str = "") -> int:
        """The number of the run that was queued."""
        return self._queued("POST", "/manage/retrain", {"why": why})

    def rollback(self, why: str = "") -> int:
        return self._queued("POST", "/manage/rollback", {"why": why})

    def pause(self, why: str = "") -> int:
        """No check, training or promotion until `resume`; predictions go on. The queued run."""
        return self._queued("POST", "/manage/pause", {"why": why})

    def resume(self, why: str = "") -> int:
        return self._queued("POST", "/manage/resume", {"why": why})

    def erase(self, ids: Sequence[str] = (), *, feature: str = "", value: Any = None, why: str = "") -> int:
        """Forget predictions by `ids`, or everyone whose record has this `value` of `feature`; the queued run."""
        whom = {"ids": list(ids)} if ids else {"feature": feature, "value": value}
        return self._queued("POST", "/manage/erasures", {**whom, "why": why})

    def replicas(self) -> list[dict[str, Any]]:
        """Every home of the deployment, what runs there, and who leads."""
        return list(self._object("GET", "/manage/replicas")["replicas"])

    def gone(self, home: str, why: str = "") -> int:
        """A home does not come back; the queued run."""
        return self._queued("POST", f"/manage/replicas/{quote(home, safe='')}/gone", {"why": why})

    def adaptation(self, limit: int = 20) -> dict[str, Any]:
        """`{"version", "enabled", "in_force", "adaptations": [...]}`, what happened last first."""
        return self._object("GET", f"/manage/adaptation?limit={limit}")

    def switch_adaptation(self, state: str, why: str = "") -> int:
        """`on` or `off`; the queued run."""
        return self._queued("POST", "/manage/adaptation", {"state": state, "why": why})

    def promote(self, version: int, why: str = "") -> int:
        return self._queued("POST", f"/manage/models/{version}/promote", {"why": why})

    def push(self, model: bytes, why: str = "", trained_until: str = "") -> int:
        """Send a skops or ONNX file; the number of the run that will judge it, on rows after `trained_until` only."""
        answer = self._ask(
            "POST",
            "/manage/models",
            params={name: value for name, value in (("why", why), ("trained_until", trained_until)) if value},
            content=model,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Digest": f"sha-256=:{b64encode(sha256(model).digest()).decode()}:",
            },
        )
        return int(answer.json()["run"])

    def wait(
        self,
        run: int,
        *,
        timeout_s: float = 3600.0,
        poll_s: float = 0.5,
        on_change: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """The run once it is done or failed; `on_change` sees each state on the way.

        Raises `NotFinished` after `timeout_s`. It goes on waiting while the service restarts.
        """
        until = time.monotonic() + timeout_s
        state = ""
        while True:
            try:
                found = self.run(run)
            except Unreachable:
                if time.monotonic() >= until:
                    raise
            else:
                if found["state"] != state:
                    state = found["state"]
                    if on_change is not None:
                        on_change(found)
                if state in FINISHED:
                    return found
            if time.monotonic() >= until:
                raise NotFinished(run, state or "queued", timeout_s)
            time.sleep(poll_s)

    # The wire

    def _queued(self, method: str, path: str, body: Any) -> int:
        return int(self._object(method, path, body)["run"])

    def _object(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self._json(method, path, body)
        if not isinstance(answer, dict):
            raise ServiceError(200, f"{self.url}{path}: expected a JSON object; is this an Evergreen?")
        return answer

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        if body is None:
            answer = self._ask(method, path)
        else:
            content = msgspec.json.encode(body)
            answer = self._ask(method, path, content=content, headers={"Content-Type": "application/json"})
        try:
            return msgspec.json.decode(answer.content)
        except msgspec.DecodeError:
            raise ServiceError(
                answer.status_code, f"{self.url}{path}: the answer is not JSON; is this an Evergreen?"
            ) from None

    def _ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **how)
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise Unreachable(self.url, reason(error)) from None
        if not answer.is_success:
            raise ServiceError(answer.status_code, f"{method} {path}: {error_text(answer.status_code, answer.content)}")
        return answer


def error_text(status: int, content: bytes) -> str:
    """The message of an answer that is not a 2xx, in one line."""
    try:
        answer = msgspec.json.decode(content)
        said = answer["error"] if isinstance(answer, dict) and "error" in answer else str(answer)
    except msgspec.DecodeError:
        said = content[:200].decode(errors="replace")
    said = " ".join(str(said).split()) or "no words"
    hint = "; give the management token: --token or EVERGREEN_SECURITY__TOKEN" if status in (401, 403) else ""
    return f"{status} {said}{hint}"


def reason(error: Exception) -> str:
    """A transport error in a few words."""
    return " ".join(str(error).split()) or type(error).__name__
