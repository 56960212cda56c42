"""Importing texts from JSONL."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.jobs.replay import Replay
from ccr_dist.generate.runner import run
from tests.jobs import captions


def lines(path: Path, entries: dict[str, Any]) -> Path:
    path.write_text(
        "".join(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n" for key, value in entries.items())
    )
    return path


TEXTS: dict[str, Any] = {"1-1": "última", "0-0": "one", "0-1": ["two", "zwei"], "0-2": None, "1-0": "four"}


def test_texts_find_their_rows(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    file = lines(tmp_path / "f.jsonl", TEXTS)
    summary = run(dataset, Replay(file, source="somewhere", licence="CC0"), "description.human", progress=False)
    assert (summary.done, summary.bad) == (2, 0)
    column = dataset.column("description.human")
    assert [column.value(0, i) for i in range(3)] == [["one"], ["two", "zwei"], None]
    assert [column.value(1, i) for i in range(2)] == [["four"], ["última"]]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert column.plan == {
        "processor": "replay",
        "sha256": digest,
        "source": "somewhere",
        "licence": "CC0",
        "inputs": {},
    }
    assert column.provenance["file"] == "f.jsonl"
    with pytest.raises(DataError, match=r"plan\.sha256"):
        run(
            dataset,
            Replay(lines(file, {**TEXTS, "0-0": "other"}), source="somewhere", licence="CC0"),
            "description.human",
            progress=False,
        )


def test_views_and_labels(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d", rows=(2,))
    views = {"0-0": {"views": {"detail": "a"}}, "0-1": {"views": {}}}
    run(dataset, Replay(lines(tmp_path / "v.jsonl", views)), "description.v", progress=False)
    assert dataset.column("description.v").value(0, 0) == {"views": {"detail": "a"}}
    run(dataset, Replay(lines(tmp_path / "l.jsonl", {"0-0": "x", "0-1": "y"}), label=True), "label.l", progress=False)
    assert dataset.column("label.l").value(0, 1) == "y"


def test_missing_keys_are_bounded_and_counted(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    file = lines(tmp_path / "f.jsonl", {k: v for k, v in TEXTS.items() if k not in ("0-1", "1-0")})
    with pytest.raises(DataBudgetError, match=r"2 of the 5 keys .* are not in the file \(0-1, 1-0\), 1 may be missing"):
        run(dataset, Replay(file, max_missing=1), "description.human", progress=False)
    assert not (dataset.root / "description.human").exists()
    summary = run(dataset, Replay(file, max_missing=2), "description.human", progress=False)
    assert summary.counts == {"missing": 2}
    assert dataset.column("description.human").value(1, 0) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"key": "a", "value": "x"}\n{"key"', r"f\.jsonl:2: not JSON"),
        ('{"key": "a"}\n', r'f\.jsonl:1: expected \{"key": \.\.\., "value": \.\.\.\}, found'),
        ('{"key": 3, "value": "x"}\n', r"f\.jsonl:1: expected"),
        ('{"key": "a", "value": "x"}\n\n{"key": "a", "value": "y"}\n', r"f\.jsonl:3: the key 'a' occurs a second time"),
        (
            '{"key": "a", "value": "x"}\n{"key": "b", "value": {"views": {}}}\n',
            r"f\.jsonl:2: key 'b': expected JSON list of strings",
        ),
        ('{"key": "a", "value": 3}\n', r"f\.jsonl:1: key 'a': expected"),
        ("\n", "holds no values"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        Replay(tmp_path / "f.jsonl")
    with pytest.raises(DataError, match="cannot read the file to replay"):
        Replay(tmp_path / "none.jsonl")


def test_command_names_keys_that_nobody_has(tmp_path: Path) -> None:
    captions(tmp_path / "d" / "train")
    captions(tmp_path / "d" / "val", rows=(1,))
    file = lines(tmp_path / "f.jsonl", {**TEXTS, "9-9": "stray"})
    result = CliRunner().invoke(
        jobs_app,
        ["replay", str(tmp_path / "d"), str(file), "--column", "description.h", "--note", "human"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert "1 keys are in no dataset of" in result.output and "are not used: 9-9" in result.output


def test_a_value_that_cannot_be_used_is_a_bad_item_of_its_row(tmp_path: Path) -> None:
    values = ['"x"', "3", '["a", null]', '"half \\ud83d"', '["y"]', '"z"', '"v"', "NaN"]
    lines = [f'{{"key": "0-{i}", "value": {value}}}' for i, value in enumerate(values)]
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    dataset = captions(tmp_path / "d", rows=(8,))
    summary = run(dataset, Replay(tmp_path / "f.jsonl"), "caption.xx.made", progress=False)
    assert summary.complete and summary.bad == 4
    column = dataset.column("caption.xx.made")
    assert [column.value(0, row) for row in range(8)] == [["x"], None, None, None, ["y"], ["z"], ["v"], None]
    found = [json.loads(line) for line in (column.folder / "000000.errors.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in found] == [
        "0-1",
        "0-2",
        "0-3",
        "0-7",
    ] and "f.jsonl:2: key '0-1': expected" in found[0]["error"]


def test_a_file_that_changes_meanwhile_gives_no_row_the_value_of_another(tmp_path: Path) -> None:
    dataset = captions(tmp_path / "d")
    file = lines(tmp_path / "f.jsonl", dict.fromkeys(TEXTS, "of old"))
    replay = Replay(file)
    lines(file, dict.fromkeys(reversed(TEXTS), "of new"))
    with pytest.raises(ConfigError, match=rf"{file}: changed while it was replayed; start again"):
        run(dataset, replay, "description.human", progress=False)
    assert dataset.column("description.human").finished() == set()
