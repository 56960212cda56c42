"""What the parts of the kit share: how one is asked, and where it writes what it finds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Found:
    """What a part has found so far, kept on disk after every line: a part that is ended loses nothing."""

    def __init__(self, path: Path, *, cpu: bool) -> None:
        self.cpu, self._path = cpu, path
        self._values: dict[str, Any] = {"lines": [], "wrong": []}
        self._write()

    @property
    def device(self) -> str:
        return "cpu" if self.cpu else "cuda"

    def line(self, **values: Any) -> None:
        """A measurement, or the result of a check."""
        self._values["lines"].append(values)
        print(values, file=sys.stderr)
        self._write()

    def count(self, **numbers: int) -> None:
        """Numbers that grow while the part runs."""
        self._values["counts"] = numbers
        self._write()

    def wrong(self, what: str) -> None:
        """A check that did not hold, as a sentence: the part has failed."""
        self._values["wrong"].append(what)
        self._write()

    def near(self, what: str, value: float, expected: float, *, within: float) -> None:
        """Wrong unless a value is the expected one but for a part `within` of it."""
        if not abs(value - expected) <= within * abs(expected):
            self.wrong(f"{what} is {value:.6g}; expected {expected:.6g} within {100 * within:g} %")

    def skip(self, why: str) -> None:
        """The part cannot run here."""
        self._values["skipped"] = why
        self._write()

    def done(self) -> int:
        """The exit code."""
        return 1 if self._values["wrong"] else 0

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._values))
        new.replace(self._path)


def run(part: Callable[[Found], None]) -> None:
    """The program of a part: OUT, where to write, and `--cpu` for its small form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    found = Found(asked.out, cpu=asked.cpu)
    part(found)
    sys.exit(found.done())
