"""Which labels does the door take? Those that the drain, the window and a training behind it can take, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from monitoring.decode import InvalidRequest
from monitoring.fits import AHEAD_S, ID_CHARS, iso, label_problem, moment

if TYPE_CHECKING:
    from monitoring.schema import FeatureSchema


class Label(Protocol):
    """One label as sent; `observed_at` is seconds since 1970 or ISO 8601."""

    id: str
    label: Any
    observed_at: float | str | None


def check_labels(labels: Sequence[Label], schema: FeatureSchema | None, now: float) -> None:
    """Return when all the labels of one request can be taken at `now` (seconds since 1970 UTC).

    Without a schema (no model is in service yet) a label only has to be a bounded scalar. Raises `InvalidRequest` (400)
    that names the first label at fault. Pure: any thread may ask.
    """
    ids = [label.id for label in labels]
    if not "".join(ids).isprintable() or max(map(len, ids), default=1) > ID_CHARS or "" in ids:
        _refuse_ids(ids)
    if len(set(ids)) < len(ids):
        _refuse_repeated(ids)
    latest = now + AHEAD_S
    # A class as it stands in the schema, which most labels are, needs no second look; True == 1, so types count.
    known = {(type(value), value) for value in schema.classes} if schema is not None else set()
    for at, label in enumerate(labels):
        value, observed = label.label, label.observed_at
        if (type(value), value) not in known:
            reason = label_problem(value) if schema is None else schema.check_label(value)
            if reason:
                raise InvalidRequest(400, f"labels[{at}].label: {reason}", "labels[].label: not a label of this model")
        if observed is None:
            continue
        try:
            seconds = moment(observed)
        except ValueError as error:
            raise InvalidRequest(400, f"labels[{at}].observed_at: {error}", "labels[].observed_at: no time") from None
        if seconds > latest:
            message = (
                f"labels[{at}].observed_at: {iso(seconds)} is more than {AHEAD_S / 60:g} minutes ahead of this "
                f"server's clock, {iso(now)}; send it in UTC or with an offset, or leave it out"
            )
            raise InvalidRequest(400, message, "labels[].observed_at: in the future")


def _refuse_ids(ids: Sequence[str]) -> None:
    for at, id_ in enumerate(ids):
        if not 1 <= len(id_) <= ID_CHARS:
            message = f"labels[{at}].id: {len(id_):,} characters; a prediction id has 1 to {ID_CHARS}"
            raise InvalidRequest(400, message, "labels[].id: too short or too long")
        if not id_.isprintable():
            message = f"labels[{at}].id: has characters that cannot be printed; send the id as it was given"
            raise InvalidRequest(400, message, "labels[].id: not printable")


def _refuse_repeated(ids: Sequence[str]) -> NoReturn:
    first: dict[str, int] = {}
    for at, id_ in enumerate(ids):
        if first.setdefault(id_, at) != at:
            break
    message = f"labels[{at}].id: the same id as labels[{first[id_]}]; send one label for each prediction in a request"
    raise InvalidRequest(400, message, "labels[].id: twice")
