"""The README's main command, small: real pictures, real machine translation, two processes, a table and a page."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
OUT = ROOT / "runs" / "smoke"


def demo() -> str:
    # other tests want cores, too
    environment = {**os.environ, "VENV": sys.prefix, "CCR_NO_SETUP": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "launch/demo.sh", "--smoke"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def said() -> str:
    """By the demo, of what it did."""
    shutil.rmtree(OUT, ignore_errors=True)
    return demo()


def test_from_pictures_to_a_table(said: str) -> None:
    page = OUT / "report" / "report.html"
    assert str(page) in said and page.stat().st_size > 100_000
    rows = list(csv.DictReader((OUT / "report" / "results.csv").open()))
    (lang,) = {row["language"] for row in rows if row["label"] == "DASD"} - {"en"}
    recall = {row["label"]: float(row["t2v_R10"]) for row in rows if row["language"] == lang}
    assert recall.keys() == {"zero-shot", "translate-test", "DASD", "kernel map (ours)", "kernel map + translation"}
    assert min(recall["DASD"], recall["kernel map (ours)"]) > 2 * recall["zero-shot"], recall
    ceiling = {float(row["t2v_R10"]) for row in rows if row["language"] == "en"}
    assert len(ceiling) == 1, "English is exactly the backbone's for every method"
    assert len({row["language"] for row in rows if row["label"] == "kernel map (ours)"}) == 14


@pytest.mark.slow
def test_again_without_work(said: str) -> None:
    again = demo()
    assert "nothing to train" in again and "measured already" in again
    assert "cla loss" not in again
