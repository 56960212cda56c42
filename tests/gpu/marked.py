"""The tests marked `gpu`; in the small form they run on the CPU, which shows that they work."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from tests.gpu.part import Found, run


class Outcomes:
    """A plugin that counts, and keeps how each test that did not pass ended; on disk after every test."""

    def __init__(self, found: Found) -> None:
        self.found, self.counts = found, Counter[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            self.found.count(**self.counts)
            if report.failed:
                self.found.line(test=report.nodeid, failed=report.longreprtext.splitlines()[-1:])
                self.found.wrong(f"{report.nodeid} failed")


def marked(found: Found) -> None:
    if found.cpu:
        os.environ["KIT_DEVICE"] = "cpu"
    outcomes = Outcomes(found)
    # Not the options of pyproject.toml: they need pytest-xdist.
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-q", "--durations=10"]
    # What compares two devices in processes of their own would compare the CPU with itself.
    alone = ["--deselect", "tests/gpu/test_checkpoints.py", "-k", "not test_results_are"] if found.cpu else []
    code = pytest.main([*options, *alone, "-m", "gpu", "tests/gpu"], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        found.wrong(f"pytest ended with code {int(code)}")
    if not outcomes.counts["passed"]:
        found.wrong("no test passed")


if __name__ == "__main__":
    run(marked)
