"""A run saved under any strategy and world size goes on under any other, and where it was saved, with the same bits.
All 225 pairs: `python -m tests.procs.resume_matrix --all --save`; its last result is kept in tests/benchmarks/results.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.procs.resume_matrix import KILLED, NEAR, PLACES, STRATEGIES, WORLDS, Case, chosen, every, holds, precision

pytestmark = [pytest.mark.procs, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("matrix") / "found.json"
    command = [sys.executable, "-m", "tests.procs.resume_matrix", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1100)
    assert out.exists(), done.stderr[-4000:]
    return json.loads(out.read_text())


def test_the_chosen_pairs_cover_strategies_and_worlds() -> None:
    cases = chosen()
    assert {(a.strategy, b.strategy) for a, b, _ in cases} == set(itertools.product(STRATEGIES, repeat=2))
    assert {(a.world, b.world) for a, b, _ in cases} == set(itertools.product(WORLDS, repeat=2))
    assert {place for place in PLACES} == {a for a, b, _ in cases if a == b}
    assert {(p.strategy, precision(p)) for p in PLACES} == set(itertools.product(STRATEGIES, NEAR))
    assert len(every()) == 225 + len(KILLED) and len(set(cases)) == len(cases)


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_a_run_goes_on_elsewhere(found: dict[str, Any], case: Case) -> None:
    result = found["resumed"][str(case)]
    assert result["resumed_at"] == 4, "the checkpoint in the middle of the second stage"
    assert result["lost"] == [] and result["carried"] > 50, (
        "weights and states of both optimisers are in place, bit for bit"
    )
    assert result["batches"], "the global batches are those of the run that was not interrupted"
    assert result["losses"] < NEAR[result["precision"]]
    assert result["bits"] or case.saved != case.resumed, "in the place where it was saved every number is the same"
    assert holds(case, result)


@pytest.mark.parametrize("place", [place for place in PLACES if precision(place) == "fp32"], ids=str)
def test_every_strategy_trains_as_one_process_does(found: dict[str, Any], place: Any) -> None:
    """Two stages, languages in turn, and validations of fewer blocks than ranks; a rank's place changes by rounding at
    most.
    """
    result = found["trained"][str(place)]
    assert result["losses"] < NEAR["fp32"]
    alone, here = result["validations"]
    assert len(alone) == 2 and here == pytest.approx(alone, abs=3)


def test_the_kept_matrix_is_whole() -> None:
    kept = json.loads((ROOT / "tests" / "benchmarks" / "results" / "resume_matrix.json").read_text())["results"]
    assert kept["resumed"].keys() == set(map(str, every())) and kept["failed"] == []
