"""The journal: nothing kept is lost, nothing torn is believed, nobody else writes it."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccr_dist.errors import DataError
from ccr_dist.generate.journal import Journal, pack, unpack
from ccr_dist.generate.processor import Outcome

HEADER = {"column": "caption.xx.shout", "shard": "000000", "keys": "k", "plan": "p", "inputs": {"caption.en": "d"}}


def opened(path: Path, kind: str = "texts", **changes: object) -> Journal:
    journal = Journal.open(path, kind, {**HEADER, **changes})
    assert journal is not None
    return journal


def test_what_is_appended_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "0.journal"
    journal = opened(path)
    assert journal.done == {}
    journal.append([(2, Outcome(["ü", "line\nbreak"], counts={"captions": 2})), (0, Outcome(None))])
    journal.append([(1, Outcome(error="broken"))])
    journal.close()
    again = opened(path)
    assert again.done == {2: Outcome(["ü", "line\nbreak"], counts={"captions": 2}), 0: Outcome(None)}  # bad rows are tried again
    assert again.dropped == 0
    again.close()
    assert json.loads(path.read_text().splitlines()[0]) == {"journal": 1, **HEADER}


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), garbage=st.sampled_from([b"", b"\0" * 20, b"\0" * 20 + b"\n", b'{"row": 9}\n', b'{"row": 9, "va']))
def test_a_torn_tail_costs_the_torn_lines_only(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    assume(cut or garbage != b'{"row": 9}\n')  # a whole first line that is no header is not torn: it is refused
    path = tmp_path_factory.mktemp("j") / "0.journal"
    journal = opened(path)
    for row in range(4):
        journal.append([(row, Outcome([f"text {row}"]))])
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + garbage if cut < len(whole) else whole + garbage)
    complete = whole[:cut].count(b"\n") - 1  # rows that are there in full, after the header
    torn = opened(path)
    assert set(torn.done) == set(range(max(complete, 0)))
    assert all(torn.done[row] == Outcome([f"text {row}"]) for row in torn.done)
    assert (torn.dropped > 0) == (path.stat().st_size < len(whole[:cut] + garbage) or (complete < 0 and bool(whole[:cut] + garbage)))
    torn.append([(7, Outcome(["after"]))])  # what follows a torn tail must be readable
    torn.close()
    last = opened(path)
    assert last.dropped == 0
    assert last.done[7] == Outcome(["after"])
    assert set(last.done) == set(torn.done) | {7}
    last.close()


def test_journal_of_another_plan_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "0.journal"
    opened(path).close()
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"0\.journal: made by other work; the difference:\n  plan: there 'p', asked 'q'\nremove it"):
        opened(path, plan="q")
    assert path.read_bytes() == before
    opened(path).close()  # the refusal gave the lock up


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "0.journal"
    code = "import sys, json, pathlib; from ccr_dist.generate.journal import Journal; "
    code += "print(Journal.open(pathlib.Path(sys.argv[1]), 'texts', json.loads(sys.argv[2])) is not None)"

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(path), json.dumps(HEADER)], capture_output=True, text=True, check=True
        ).stdout.strip()

    journal = opened(path)
    assert other() == "False"
    journal.close()
    assert other() == "True"
    journal = opened(path)
    journal.remove()
    assert not path.exists()
    assert other() == "True"


def test_a_lock_on_a_removed_file_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner commits and removes its journal between another process' open() and flock()."""
    path, flock, owner = tmp_path / "0.journal", fcntl.flock, opened(tmp_path / "0.journal")

    def late(fd: int, operation: int) -> None:
        owner.remove()
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = opened(path)
    second.append([(0, Outcome(["kept"]))])
    assert path.exists() and "kept" in path.read_text()
    assert Journal.open(path, "texts", HEADER) is None  # and it is locked


def test_vectors_and_pictures_keep_their_bits() -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float16)
    for value in (vectors, vectors[:0]):
        back = unpack("matrix", json.loads(json.dumps(pack("matrix", value))))
        assert back.dtype == np.float16
        assert np.array_equal(back, value)
    assert unpack("image", json.loads(json.dumps(pack("image", b"\xff\x00")))) == b"\xff\x00"
