"""Where the time of the tests went, from pytest's own report."""

from __future__ import annotations

from pathlib import Path

from tests.durations import lines, seconds

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.unit.data.test_a" name="one" time="1.5"/>
<testcase classname="tests.unit.data.test_a.TestGroup" name="two" time="2"/>
<testcase classname="tests.procs.test_b" name="three[x.test_y]" time="40.25"><failure>no</failure></testcase>
</testsuite></testsuites>"""


def test_seconds_are_summed_by_file_and_by_tier(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(REPORT)
    files = seconds(report)
    assert files == {"tests.unit.data.test_a": 3.5, "tests.procs.test_b": 40.25}
    said = lines(files)
    assert [line.split()[:2] for line in said[1:3]] == [["procs", "40"], ["unit", "4"]]
    assert [line.split()[-1] for line in said[4:]] == ["tests.procs.test_b", "tests.unit.data.test_a"]
