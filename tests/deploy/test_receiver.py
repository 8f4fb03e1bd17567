"""What the runbooks show as a receiver of the webhook takes an event that was signed, and no other."""

from __future__ import annotations

import base64
import hmac

import pytest

from monitoring.alerts import Event, signing_key
from tests.docs.pages import DOCS, blocks

SECRET = "whsec_" + base64.b64encode(b"a key of the test alone").decode()


def test_the_receiver_of_the_runbooks_takes_a_signed_event_and_refuses_a_changed_one() -> None:
    (shown,) = [block.text for block in blocks(DOCS / "runbooks.md") if block.language == "python"]
    event = Event("5c0f", "record_dropped", "began", "model", 1795828000.5, {"trouble": "record_dropped", "rows": 3})
    body = event.body()
    given = {"base64": base64, "hmac": hmac, "headers": event.headers(body, SECRET), "key": signing_key(SECRET)}

    exec(shown, {**given, "body": body})
    with pytest.raises(AssertionError):
        exec(shown, {**given, "body": body.replace(b"3", b"4")})
