"""The journal: nothing kept is lost or changed, nothing torn is believed, and generations merge."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccr_dist.errors import DataError
from ccr_dist.generate.journal import Journal, Past, pack, read, unpack
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.traces.files import JournalFile

HEADER = {"column": "caption.xx.shout", "shard": "000000", "keys": "k", "plan": "p", "inputs": {"caption.en": "d"}}


def created(path: Path, merged: dict[int, RowOutcome] | None = None) -> Journal:
    journal = Journal.create(partial(JournalFile.create, path), "texts", HEADER, merged or {})
    assert journal is not None
    return journal


def contents(*paths: Path) -> list[tuple[Path, bytes]]:
    return [(path, path.read_bytes()) for path in paths if path.exists()]


def past(*paths: Path) -> Past:
    return read(contents(*paths), "texts", HEADER)


def test_what_is_appended_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "0.journal.1"
    journal = created(path)
    assert past(path) == Past()
    journal.append([(2, RowOutcome(["ü", "line\nbreak"], counts={"captions": 2})), (0, RowOutcome(None))])
    journal.append([(1, RowOutcome(error="broken"))])
    journal.close()
    made = {
        2: RowOutcome(["ü", "line\nbreak"], counts={"captions": 2}),
        0: RowOutcome(None),
        1: RowOutcome(error="broken"),
    }
    assert past(path) == Past(made, fresh=3)
    assert json.loads(path.read_text().splitlines()[0]) == {"journal": 2, **HEADER, "merged": 0}


def test_a_journal_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "0.journal.1"
    created(path).append([(0, RowOutcome(["a"]))])
    before = path.read_bytes()
    assert Journal.create(partial(JournalFile.create, path), "texts", HEADER, {}) is None
    assert path.read_bytes() == before


def test_generations_merge(tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"0.journal.{g}" for g in (1, 2, 3))
    first = created(one)
    first.append([(0, RowOutcome(["a"])), (1, RowOutcome(error="e")), (2, RowOutcome(error="f"))])
    second = created(two, past(one).outcomes)
    second.append([(1, RowOutcome(["b"]))])
    # an owner that was overtaken and does not know it yet
    first.append([(3, RowOutcome(["late"])), (1, RowOutcome(["another b"]))])
    made = {0: RowOutcome(["a"]), 1: RowOutcome(["b"]), 2: RowOutcome(error="f"), 3: RowOutcome(["late"])}
    assert past(one, two).outcomes == made
    created(three, past(one, two).outcomes)
    assert past(three) == past(one, two, three) == Past(made, fresh=0)
    assert past(one, tmp_path / "gone", three).outcomes == made


def test_fresh_rows_are_those_that_no_older_generation_knew(tmp_path: Path) -> None:
    """An error that every owner makes again before it dies is no progress."""
    one, two = tmp_path / "0.journal.1", tmp_path / "0.journal.2"
    created(one).append([(0, RowOutcome(error="e"))])
    assert past(one).fresh == 1
    second = created(two, past(one).outcomes)
    assert past(two).fresh == 0
    second.append([(0, RowOutcome(error="e"))])
    assert past(two).fresh == past(one, two).fresh == 0
    second.append([(1, RowOutcome(["b"]))])
    assert past(two).fresh == past(one, two).fresh == 1


@settings(max_examples=60)
@given(
    cut=st.integers(0, 400),
    garbage=st.sampled_from([b"", b"\0" * 20, b"\0" * 20 + b"\n", b'{"row": 9}\n', b'{"row": 9, "va']),
)
def test_a_torn_tail_costs_the_torn_lines_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    assume(cut or garbage != b'{"row": 9}\n')
    path = tmp_path_factory.mktemp("j") / "0.journal.1"
    journal = created(path)
    for row in range(4):
        journal.append([(row, RowOutcome([f"text {row}"]))])
    journal.close()
    whole = path.read_bytes()
    torn = whole[:cut] + garbage if cut < len(whole) else whole + garbage
    path.write_bytes(torn)
    complete = max(0, whole[:cut].count(b"\n") - 1)  # rows that are there in full, after the header
    found = past(path)
    assert found.outcomes == {row: RowOutcome([f"text {row}"]) for row in range(complete)}
    kept = sum(len(line) for line in whole.splitlines(keepends=True)[: complete + (cut > whole.index(b"\n"))])
    assert (found.dropped > 0) == (len(torn) > kept)


def test_journal_of_another_plan_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "0.journal.1"
    created(path).close()
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=r"0\.journal\.1: made by other work; the difference:\n  plan: there 'p', asked 'q'\nremove it"
    ):
        read(contents(path), "texts", {**HEADER, "plan": "q"})
    assert path.read_bytes() == before


def test_vectors_and_pictures_keep_their_bits() -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 5))
    for value in (
        array for dtype in (np.float16, np.float32) for array in (vectors.astype(dtype), np.zeros((0, 5), dtype))
    ):
        back = unpack("matrix", json.loads(json.dumps(pack("matrix", value))))
        assert back.dtype == value.dtype
        assert np.array_equal(back, value)
    assert unpack("video", json.loads(json.dumps(pack("video", b"\xff\x00")))) == b"\xff\x00"
    assert unpack("image", json.loads(json.dumps(pack("image", b"\xff\x00")))) == b"\xff\x00"


@pytest.mark.parametrize(
    "line",
    [
        {"row": None, "value": ["a"]}, {"row": [0], "value": ["a"]}, {"row": "0", "value": ["a"]},
        {"row": True, "value": ["a"]}, {"row": -1, "value": ["a"]}, {"row": 1.0, "value": ["a"]},
        {"row": 3, "value": ["a"]}, {"row": 0, "value": "a"}, {"row": 0, "value": [1]}, {"row": 0, "value": {"a": 1}},
        {"row": 0, "value": 1}, {"row": 0, "value": True}, {"row": 0, "value": ["a"], "counts": None},
        {"row": 0, "value": ["a"], "counts": [1]}, {"row": 0, "value": ["a"], "counts": {"a": "x"}},
        {"row": 0, "value": ["a"], "lacks": 3}, {"row": 0, "error": None}, {"row": 0, "error": "e", "final": "x"},
        {"value": ["a"]}, {"row": 0}, [0], 3, None,
    ],
)  # fmt: skip
def test_a_line_that_no_row_has_is_damaged_and_its_row_is_made_again(tmp_path: Path, line: Any) -> None:
    path = tmp_path / "0.journal.1"
    journal = created(path)
    journal.append([(1, RowOutcome(["good"]))])
    journal.close()
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n" + json.dumps({"row": 2, "value": ["after"]}).encode() + b"\n")
    assert read(contents(path), "texts", HEADER, rows=3) == Past({1: RowOutcome(["good"])}, fresh=1, dropped=2)


def test_a_header_that_counts_nothing_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "0.journal.1"
    path.write_text(json.dumps({"journal": 2, **HEADER, "merged": "x"}) + '\n{"row": 0, "value": ["a"]}\n')
    assert past(path) == Past(dropped=2)
