"""How an operation stands in an OpenAPI document of ours: every status it can answer, with words and an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from service.serving.predictor import ServedModel

JSON: Final = "application/json"
JsonObject = dict[str, Any]

ERROR: Final[JsonObject] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What happened, with which value, and what to do"}},
}

WORDS: Final[dict[str, tuple[str, str]]] = {
    "400": ("Malformed: the message names the place", "this is not HTTP/1.1: the connection ends here"),
    "401": ("A token is needed, and none was sent", "send a token: `Authorization: Bearer TOKEN`"),
    "403": ("The token is not of this deployment, or may not do this", "the token 'shop' may not do this"),
    "404": ("Not here: the message says what is", "model 'other' is not served here"),
    "405": ("Another method than `Allow` says", "the route takes another method"),
    "408": ("The request was not whole in time", "the request was not whole after 10 s; send it again"),
    "409": ("Not possible as things stand", "there is no previous champion to go back to"),
    "410": ("It has been deleted since", "the rows of check 17 were deleted by retention"),
    "413": ("Too many records, or too many bytes", "the body has 9000000 bytes or more; send fewer"),
    "414": ("The path and query are too long", "the URL is longer than 16384 bytes: send the data in the body"),
    "415": (
        "Another content type than named here, or another compression",
        "content encoding 'br': send the body in gzip or zstd, or without Content-Encoding",
    ),
    "422": ("Well formed, but a value that the model cannot take", "version 1 cannot take these records"),
    "429": ("Too many rows or labels from this source in this hour", "1000 rows an hour are the most for this source"),
    "431": ("The headers are too long", "the headers are longer than 16384 bytes together: send fewer, or shorter"),
    "500": ("An error of ours", "an error of ours; the server's log has the details under request 7f3a"),
    "503": ("Not now: the message says why", "64 requests are in flight on this worker; try again"),
}
"""Status -> what it means, and an example of its message."""

ANY: Final = ("400", "405", "408", "414", "431", "500")
"""What every route may answer: an HTTP request can be no HTTP, too slow, too long, of another method."""
BODY: Final = (*ANY, "401", "403", "413", "415", "429", "503")
"""What an operation with a body may answer."""

TRACE_ID: Final = {
    "type": "string",
    "pattern": "^[0-9a-f]{32}$",
    "description": "The trace of the request's `traceparent`, or one that began here; absent without either",
}
ADAPTATION: Final = {
    "type": "integer",
    "description": "Number of the adaptation of this version's output; absent when none is in force",
}

_WHEN: Final = {"description": "Seconds until it may be tried again", "schema": {"type": "integer", "minimum": 1}}
_HEADERS: Final[dict[str, JsonObject]] = {
    "401": {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}}},
    "405": {"Allow": {"description": "The methods it takes", "schema": {"type": "string"}}},
    "429": {"Retry-After": {**_WHEN, "required": True}},
    "503": {"Retry-After": _WHEN},
}


class Described(NamedTuple):
    """What a document is made from."""

    model: ServedModel
    target: JsonObject  # schema of one label
    most: int  # records or labels of a request
    security: list[JsonObject]  # of what needs a token from some

    @property
    def record(self) -> JsonObject:
        return self.model.schema.example(self.model.decoder.max_chars)

    @property
    def answered(self) -> Any:
        """A value that the model may answer."""
        return self.model.classes[0] if self.model.classes else 0.5

    @property
    def chances(self) -> list[float]:
        return [1.0] + [0.0] * (len(self.model.classes) - 1)


def error(status: str, message: str = "") -> JsonObject:
    """The response of an error status; `message` is a better example than the usual one."""
    described, usual = WORDS[status]
    found: JsonObject = {
        "description": described,
        "content": {JSON: {"schema": ref("Error"), "example": {"error": message or usual}}},
    }
    if status in _HEADERS:
        found["headers"] = _HEADERS[status]
    return found


def errors(*statuses: str, messages: dict[str, str] | None = None) -> JsonObject:
    """The responses of these error statuses, in order."""
    return {status: error(status, (messages or {}).get(status, "")) for status in sorted({*statuses})}


def ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(schema: JsonObject, example: Any = None) -> JsonObject:
    return {JSON: {"schema": schema} if example is None else {"schema": schema, "example": example}}


def page(
    name: str,
    tag: str,
    summary: str,
    content: JsonObject,
    more: Sequence[str] = (),
    *,
    description: str = "",
) -> JsonObject:
    """A GET that needs no token and answers `content`."""
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        **({"description": description} if description else {}),
        "security": [],
        "responses": {"200": {"description": "As it is now", "content": content}, **errors(*ANY, *more)},
    }
