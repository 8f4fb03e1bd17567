"""The pages for people: where things are, and the API to try out. Every byte comes from a file of this installation.

`/docs` is Swagger UI, whose files BentoML's package brings along; what starts it is a script of ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Final

from service.process import INSTALL_ROOT
from service.serving.asgi import Headers

WEB: Final = INSTALL_ROOT / "service" / "web"
SWAGGER: Final = "bentoml/_internal/server/static_content"

_TYPES: Final = {
    ".html": b"text/html",
    ".css": b"text/css",
    ".js": b"text/javascript",
    ".svg": b"image/svg+xml",
}

PAGES: Final = {
    **{
        f"/page/static/{file.name}": f"static/{file.name}"
        for file in sorted(WEB.glob("static/*.*"))
        if file.suffix in _TYPES
    },
    "/": "static/page.html",
    "/docs": "docs.html",
    "/docs/page.css": "page.css",
    "/docs/docs.js": "docs.js",
    "/docs/swagger-ui-bundle.js": f"{SWAGGER}/swagger-ui-bundle.js",
    "/docs/swagger-ui.css": f"{SWAGGER}/swagger-ui.css",
}
"""Path -> its file: ours, or one of another package."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@cache
def page(path: str) -> tuple[bytes, bytes, Headers]:
    """(content type, body, headers) of one of `PAGES`."""
    package, found, name = PAGES[path].partition("/")
    folder = WEB
    if package == "static":
        folder = WEB / package
    elif found:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0])
    file = folder / (name or package)
    content = file.read_bytes()
    # Swagger UI sets style attributes; nothing else of it asks for leave.
    policy = _POLICY.format(styles=" 'unsafe-inline'" if path == "/docs" else "")
    headers = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache" if file.suffix == ".html" or package == "static" else b"max-age=3600"),
        (b"etag", b'"%s"' % hashlib.blake2b(content, digest_size=12).hexdigest().encode()),
    ]
    return _TYPES[file.suffix] + b"; charset=utf-8", content, headers
