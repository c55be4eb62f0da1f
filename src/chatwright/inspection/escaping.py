"""Text of strangers, made safe and visible for a page: nothing in it can act, hide or reorder what stands around it."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from typing import Any

_KEPT = frozenset("\n\t\u200c\u200d")
"""Line break and tab; the joiners that scripts and emoji need to look right."""
_SUSPECT = re.compile("[^\x20-\x7e\n\t\u00a1-\u00ac\u00ae-\u02ff\u0370-\u05ff\u3000-\ud7ff]")
"""Characters worth a look at their category; all others are plainly visible."""


def visible(text: str) -> str:
    """The text with every character that can't be seen written out.

    Control characters become pictures (NUL → ␀), lone surrogates, line and paragraph separators, and invisible
    format characters such as bidi controls become ⟨U+202E⟩.
    """
    return _SUSPECT.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    char = match[0]
    category = unicodedata.category(char)
    if char in _KEPT or category not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def escape(text: str) -> str:
    """Visible text for HTML, inside elements and inside quoted attributes."""
    return html.escape(visible(text), quote=True)


def shortened(text: str, most: int) -> tuple[str, int]:
    """The first `most` characters, and how many were left out."""
    return text[:most], max(0, len(text) - most)


def script_json(value: Any) -> str:
    """JSON for inside a `<script type="application/json">` element: pure ASCII, and no `<` that could end it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def slug(text: str) -> str:
    """A name as part of an anchor: the last piece of a path, other signs than letters, digits, `.` and `-` as `_`."""
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9.-]+", "_", last).strip("_") or "source"
