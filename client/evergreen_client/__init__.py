"""A client of a running Evergreen: predict, send labels back, manage.

>>> from evergreen_client import Client, Refused
>>> loan = {"income": 1.2, "debt": -0.4, "purpose": "car"}
>>> with Client(url) as evergreen:
...     answers = evergreen.predict([loan, {**loan, "purpose": "travel"}])
...     accepted = evergreen.feedback([{"id": answers.ids[0], "label": False}])
...     try:
...         evergreen.predict([loan, {**loan, "income": "much"}])
...     except Refused as refused:
...         wrong = refused.row, refused.column
>>> answers.version, len(answers.predictions), answers.classes
(1, 2, (False, True))
>>> accepted, wrong
(1, (1, 'income'))

Each record goes out with an id that is made here, so a request whose answer was lost is sent again without being
counted twice (`repeats.py`). Errors are an `EvergreenClientError` each (`errors.py` draws the tree).
`AsyncClient` has the same methods for asyncio. pandas is needed by those only who hand over a DataFrame.
"""

from evergreen_client.answers import Answers, Wanted, Warned
from evergreen_client.async_client import AsyncClient
from evergreen_client.client import Client
from evergreen_client.errors import (
    BadRecords,
    Busy,
    Denied,
    EvergreenClientError,
    NotEvergreen,
    NotFinished,
    NotFound,
    Refused,
    ServerError,
    StatusError,
    TooLarge,
    Unreachable,
)

__all__ = [
    "Answers",
    "AsyncClient",
    "BadRecords",
    "Busy",
    "Client",
    "Denied",
    "EvergreenClientError",
    "NotEvergreen",
    "NotFinished",
    "NotFound",
    "Refused",
    "ServerError",
    "StatusError",
    "TooLarge",
    "Unreachable",
    "Wanted",
    "Warned",
]
