"""The browser of whoever sits at this machine, when there is one."""

from __future__ import annotations

import os
import sys
import webbrowser


def open_in_browser(address: str) -> bool:
    """Whether a browser took the address. Without a display there is none: one in the terminal runs no page."""
    seen = sys.platform != "linux" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return seen and webbrowser.open(address)
