"""What the page has at `/page/...`: which part is asked for, and what makes it. The same for whoever asks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote

import msgspec
import sqlalchemy as sa

from service.serving.management.deployment import TRY_AGAIN_S, store_down
from service.serving.request import Reject
from service.web.decisions import decisions
from service.web.distribution import distribution
from service.web.drift import drift
from service.web.histogram import histogram
from service.web.quality import quality
from service.web.segments import segments
from service.web.span import Asked, whole_number
from service.web.state import state
from service.web.story import story
from service.web.traffic import traffic
from training.comparison import compare
from training.manifest import FormatError
from training.registry import UnknownVersion
from training.runs import UnknownRun

if TYPE_CHECKING:
    from service.web.frames import Asking, Made
    from service.web.page import Page
    from service.web.shapes import Drift

LARGEST_ID: Final = 2**31 - 1
MOST_FIELDS: Final = 20
FOREVER_S: Final = 3600.0
"""Of an answer that only another store changes; it holds a clock's moment all the same."""

Query = Mapping[str, str]
Work = Callable[[], msgspec.Struct]


async def part(page: Page, asked: Asking) -> Made:
    """One part of the page. Raises `Reject`, for a store that does not answer, too."""
    try:
        query = dict(parse_qsl(asked.query, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        raise Reject(400, f"a query of more than {MOST_FIELDS} fields: no part of the page has so many") from None
    try:
        found = _route(page, asked.path, query)  # a feature's name may have an encoded slash
        if found is None:
            raise Reject(404, f"the page has no such part, got {unquote(asked.path)[:80]}")
        key = (asked.path, *sorted(f"{name}={value}" for name, value in query.items()))
        return await page.answer(key, *found, asked.known)
    except (UnknownRun, UnknownVersion) as error:
        raise Reject(404, str(error)) from None
    except FormatError as error:
        raise Reject(503, str(error)) from None
    except sa.exc.SQLAlchemyError as error:
        raise Reject(503, store_down(error), TRY_AGAIN_S) from None


def _route(page: Page, path: str, query: Query) -> tuple[float, Work] | None:
    """(for how many seconds the answer holds while the store is as it is, what makes it); None: no such path.

    Raises `Reject` for a query that makes no sense.
    """
    here, asked = page.here, Asked.of(query)
    match path.split("/")[2:]:
        case ["state"]:
            return 2.0, lambda: state(here, page.revision, page.delays())
        case ["quality"]:
            return FOREVER_S, lambda: quality(here, asked)
        case ["decisions"]:
            before = whole_number(query, "before", 1, LARGEST_ID)
            limit = whole_number(query, "limit", 1, 200) or 50
            noes = whole_number(query, "checks", 0, 1) != 0
            return FOREVER_S, lambda: decisions(here, before, limit, noes)
        case ["drift"]:
            return FOREVER_S, lambda: _strip(page, asked)
        case ["drift", check, feature] if _number(check):
            name = unquote(feature)
            return FOREVER_S, lambda: histogram(here, page.references, int(check), name)
        case ["distribution"]:
            return 15.0, lambda: distribution(here, asked)
        case ["segments"]:
            return FOREVER_S, lambda: segments(here)
        case ["traffic"]:
            return 4.0, lambda: traffic(here, page.meter, asked)
        case ["runs", run] if _number(run):
            return FOREVER_S, lambda: story(here, int(run))
        case ["versions", a, b] if _number(a) and _number(b):
            return FOREVER_S, lambda: compare(here.engine, here.registry, int(a), int(b))
        case _:
            return None


def _strip(page: Page, asked: Asked) -> Drift:
    found = drift(page.here, asked)
    if found.checks:
        page.references.soon(page.here, found.checks[-1].version)
    return found


def _number(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,9}", text) is not None and int(text) <= LARGEST_ID
