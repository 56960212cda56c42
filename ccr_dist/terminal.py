"""What reaches a terminal: text that comes from data, file names, servers and logs is only ever text there, never a
command to it.

Captions may hold escape sequences that move the cursor, rename the window or hide a line; and characters that the
terminal's encoding has not. `guarded` makes both visible in all that a command prints; tables and bars are printed by a
`console`, which may use the terminal's commands itself.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# All controls but line break and tab; line separators; marks that turn the direction of what follows; halves of
# characters.
_COMMANDS = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
]
_VISIBLE = {code: f"\\u{code:04x}" for code in _COMMANDS if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text with control characters written as in JSON: \\u001b."""
    return text.translate(_VISIBLE)


class _Guarded:
    """A stream that makes controls visible. A carriage return at the beginning of a write passes: bars of libraries
    begin a line again.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        rest = text.lstrip("\r")
        start = "\r" if len(text) > len(rest) else ""
        self.stream.write(start + visible(rest))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return False  # to libraries: they need not colour what would be made visible

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Whatever is printed inside of it goes through `visible`."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (stream if isinstance(stream, _Guarded) else _Guarded(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def console(*, stderr: bool = False, **options: Any) -> Console:
    """rich's, on stdout or stderr. Text in it is no markup, and its controls are visible; the console's own pass."""
    stream = sys.stderr if stderr else sys.stdout
    file = stream.stream if isinstance(stream, _Guarded) else stream
    return _kind()(file=file, markup=False, highlight=False, **options)


@functools.cache
def _kind() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

    class Visible(Console):
        def render_str(self, text: str, **more: Any) -> Text:  # before it is measured
            return super().render_str(visible(text), **more)

        def render(self, *arguments: Any, **more: Any) -> Iterator[Segment]:
            for segment in super().render(*arguments, **more):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return Visible
