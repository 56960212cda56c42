"""Lines of Markdown that people write are at most 100 characters long; ruff looks at those of code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 100
MADE = "configs/studies/results/"  # pages that commands write


def too_long(text: str) -> list[int]:
    """Numbers of the lines over the limit. Tables, blocks of code and lines with a link may be longer."""
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*(```|~~~)", line):
            fenced = not fenced
        elif not fenced and len(line) > MOST and not re.search(r"^\s*\||\]\(|https?://", line):
            found.append(number)
    return found


def test_lines_of_markdown() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "*.md"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pages = [name for name in listed.stdout.splitlines() if not name.startswith(MADE) and (ROOT / name).is_file()]
    wrong = {name: too_long((ROOT / name).read_text(encoding="utf-8")) for name in pages}
    assert pages and not {name: lines for name, lines in wrong.items() if lines}


def test_what_is_too_long() -> None:
    long = "word " * 21
    assert too_long(f"{long}\n| {long} |\n```\n{long}\n```\n{long}[page](page.md)\n{long}\n") == [1, 7]
