"""Text on its way to a client, to a log line or into the head of an answer."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

from ccr_dist.redact import without_secrets
from ccr_dist.terminal import visible

_FOLDERS = re.compile(r"(?<![\w/.:])(?:~|\.{1,2})?/(?:[^/\s'\"]+/)*(?=[^/\s'\"])")


def shown(text: str) -> str:
    """Text that JSON and UTF-8 can hold: halves of characters, which names of files may have, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def message(error: BaseException) -> str:
    """What a client may know of an error: its sentence, with paths cut to their last part and without secrets."""
    return shown(_FOLDERS.sub("", without_secrets(str(error))))


def line(text: str, *, most: int = 200) -> str:
    """One line of a log: bounded, and without controls."""
    flat = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    return flat if len(flat) <= most else f"{flat[:most]}…"


def disposition(name: str, *, attached: bool) -> str:
    """The header Content-Disposition for a file of any name."""
    last = PurePosixPath(shown(name)).name or "picture"
    return f"{'attachment' if attached else 'inline'}; filename*=UTF-8''{quote(last, safe='')}"
