"""Lines that a process appends while it runs: torn ones are left out, damaged ones are noticed."""

import pytest

from ccr_dist.data.storage import json_lines
from ccr_dist.errors import DataError


def test_a_line_behind_a_torn_one_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    assert json_lines.read_lines(path) == ([], [])
    json_lines.append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "te')
    assert json_lines.read_lines(path) == ([{"n": 1}], []), "a torn last line is normal"
    json_lines.append_line(path, {"n": 3, "name": "é"})
    assert json_lines.read_lines(path) == ([{"n": 1}, {"n": 3, "name": "é"}], [2])


def test_every_flipped_bit_of_a_line_is_noticed_or_changes_no_value(tmp_path):
    path, values = tmp_path / "log.jsonl", {"step": 12, "loss": 1.5, "name": "é"}
    lines = [values, {}, {"step": 13, "of": {"a": [1, None]}}]
    for line in lines:
        json_lines.append_line(path, line)
    whole = path.read_bytes()
    assert json_lines.read_lines(path) == (lines, [])
    first = len(json_lines.line_of(values))
    for place in range(len(whole) - 1):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            found = json_lines.read_lines(path)
            assert len(found.values) + len(found.damaged) >= 2
            # nothing before it says that lines carry a CRC: an earlier version may have written the first
            if place >= first:
                assert [line for line in found.values if line not in lines] == []
            numbers = [(line.get("step"), line.get("loss")) for line in found.values if "step" in line]
            assert set(numbers) <= {(12, 1.5), (13, None)}


def test_lines_of_earlier_versions_are_read_and_do_not_excuse_later_ones(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n')
    json_lines.append_line(path, {"n": 3})
    with path.open("ab") as file:
        file.write(b'{"n": 4}\n[]\n' + json_lines.line_of({"n": 5}))
    assert json_lines.read_lines(path) == ([{"n": 1}, {"n": 2}, {"n": 3}, {"n": 5}], [4, 5])
    with pytest.raises(DataError, match=r"log\.jsonl: damaged in line 4, 5, so numbers computed from it .*; do this"):
        json_lines.read_lines(path).require(path, "do this")


def test_a_line_of_other_values_than_its_writer_writes_is_damaged(tmp_path):
    def sound(values):
        return json_lines.has_types(values, {"step": int, "loss": int | float})

    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2}\n{"step": 1.5}\n{"loss": null}\n{"step": true}\n{"other": "x"}\n{"step": "2"}'
    )
    assert json_lines.read_lines(path, sound) == ([{"step": 1, "loss": 2}, {"other": "x"}], [2, 3, 4])
