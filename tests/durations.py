"""Where the time of the tests went: python -m tests.durations REPORT.xml (what `pytest --junit-xml` wrote).

Several processes test at once, so the sums are of the tests' own seconds, and larger than what passed on the clock.
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

SLOWEST = 10


def seconds(report: Path) -> dict[str, float]:
    """{file, as a module name: seconds of all its tests, set-up and teardown included}."""
    found: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        parts = case.get("classname", "").split(".")
        module = next((n for n, part in enumerate(parts, start=1) if part.startswith("test_")), len(parts))
        found[".".join(parts[:module])] += float(case.get("time", 0))
    return found


def tiers(files: Mapping[str, float]) -> dict[str, float]:
    """{folder below tests/: seconds}."""
    found: dict[str, float] = defaultdict(float)
    for name, taken in files.items():
        parts = name.split(".")
        found[parts[1] if len(parts) > 2 else parts[0]] += taken
    return found


def descending(found: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(found.items(), key=lambda pair: -pair[1])


def lines(files: Mapping[str, float]) -> list[str]:
    """What is printed: every tier, and the slowest files."""
    table = [f"{name:<12}{taken:8.0f} s" for name, taken in descending(tiers(files))]
    slowest = [f"{taken:8.0f} s  {name}" for name, taken in descending(files)[:SLOWEST]]
    return ["seconds of tests, by tier:", *table, f"the {len(slowest)} slowest files:", *slowest]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prints how long each tier and the slowest files took.")
    parser.add_argument("report", type=Path)
    print("\n".join(lines(seconds(parser.parse_args(arguments).report))))


if __name__ == "__main__":
    main()
