"""Reads blocks of WML, the language of the data of Battle for Wesnoth, as they are written: macros are not run, but for
those that a file defines itself and that have no parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ccr_dist.errors import DataError

_TOKEN = re.compile(
    r"""\#define[ \t]+(?P<define>\w+)(?P<parameters>[^\n]*)\n(?P<body>.*?)\#enddef
      | \#textdomain[ \t]+(?P<domain>\S+)
      | (?P<comment>\#[^\n]*)
      | (?P<translated>_?)[ \t]*"(?P<string>(?:[^"]|"")*)"
      | <<(?P<raw>.*?)>>
      | \[(?P<tag>[+/]?\w+)\]
      | \{(?P<macro>[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}
      | (?P<newline>\n)
      | (?P<space>[ \t\r]+)
      | (?P<word>[^\s\[\]{}"#=+]+)
      | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)


class Text(NamedTuple):
    """A value.

    Attributes:
        text: The text as it is written, macros of the file filled in.
        domain: The gettext domain that translates it; None if it is not one translatable string.
    """

    text: str
    domain: str | None = None


@dataclass
class Block:
    """A block at the top of a file.

    Attributes:
        line: Its first line in the file.
        values: Its own values, without those of the blocks in it; the first one of a name.
        macros: Names of the macros that stand in it alone.
    """

    line: int
    values: dict[str, Text] = field(default_factory=dict)
    macros: set[str] = field(default_factory=set)


def blocks(text: str, tag: str, place: str) -> Iterator[Block]:
    """The blocks `[tag]` at the top of a file.

    Args:
        text: Content of the file.
        tag: Name of the blocks.
        place: Name of the file, for messages.

    Raises:
        DataError: Tags do not match; names file and line.
    """
    defined: dict[str, str] = {}
    domain, key = "wesnoth", None
    opened: list[tuple[str, int]] = []
    line: list[tuple[str, str]] = []  # (kind, text) of the tokens since the last line break
    block = Block(0)
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind == "body":
            if not match["parameters"].split("#")[0].strip():
                defined[match["define"]] = match["body"].strip()
        elif kind == "domain":
            domain = match["domain"]
        elif kind == "tag" and key is None:
            name, number = match["tag"], text.count("\n", 0, match.start()) + 1
            if not name.startswith("/"):
                opened.append((name.lstrip("+"), number))
                if len(opened) == 1:
                    block = Block(number)
            elif not opened or opened[-1][0] != name[1:]:
                there = f"[{opened[-1][0]}] of line {opened[-1][1]} is open" if opened else "no block is open"
                raise DataError(f"{place}:{number}: [{name}], but {there}")
            else:
                opened.pop()
                if not opened and name[1:] == tag:
                    yield block
            line = []
        elif kind == "newline":
            if key is not None and line and line[-1] == ("other", "+"):
                continue  # the value goes on in the next line
            if len(opened) == 1 and key is not None:
                block.values.setdefault(key, _value(line, domain, defined))
            elif len(opened) == 1:
                block.macros.update(content.split()[0] for kind, content in line if kind == "macro" and content.split())
            line, key = [], None
        elif kind == "other" and match[0] == "=" and key is None and line:
            key, line = line[-1][1], []
        elif kind not in ("space", "comment"):
            kind = "translated" if kind == "string" and match["translated"] else kind
            content = match[match.lastgroup] if match.lastgroup in ("string", "raw", "macro") else match[0]
            line.append((kind, content or ""))
    if opened:
        raise DataError(f"{place}:{opened[-1][1]}: [{opened[-1][0]}] is not closed")


def _value(tokens: list[tuple[str, str]], domain: str, defined: dict[str, str]) -> Text:
    parts, before = [], ""
    for kind, text in tokens:
        if kind in ("string", "translated"):
            text = text.replace('""', '"')
        elif kind == "macro":
            text = "{" + text + "}"
        elif (kind, text) == ("other", "+"):
            before = ""
            continue
        parts.append(" " + text if kind == before == "word" else text)
        before = kind
    text = "".join(parts)
    if len(tokens) == 1 and tokens[0][0] == "translated":
        return Text(text, domain)
    for _ in range(4):  # macros in macros
        text = re.sub(r"\{(\w+)\}", lambda match: defined.get(match[1], match[0]), text)
    return Text(text)
