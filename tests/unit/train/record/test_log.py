"""The log of a run that goes on: lines behind its checkpoint are dropped, damaged ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist.data.storage.json_lines import append_line, read_lines
from ccr_dist.train.record import telemetry


def test_a_log_goes_on_behind_the_checkpoint_and_tells_of_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    for step in range(1, 6):
        append_line(path, {"step": step, "loss": 0.5})
    telemetry._truncate(path, 4)
    assert capsys.readouterr().err == ""
    assert [line["step"] for line in read_lines(path).values] == [1, 2, 3, 4]
    path.write_text(path.read_text().replace('"step": 2, "loss": 0.5', '"step": 2, "loss": 0.7'))
    telemetry._truncate(path, 3)
    assert f"{path}: damaged in line 2; what it said is lost" in capsys.readouterr().err
    assert [line["step"] for line in read_lines(path).values] == [1, 3] and path.read_text().count('"crc"') == 2
