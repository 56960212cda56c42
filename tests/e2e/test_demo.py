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


def demo() -> str:
    environment = {**os.environ, "VENV": sys.prefix, "CCR_NO_SETUP": "1"}
    environment.pop("OMP_NUM_THREADS", None)  # as a user would run it: featurising takes all cores
    done = subprocess.run(["bash", "launch/demo.sh", "--smoke"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_from_pictures_to_a_table_and_again_without_work() -> None:
    out = ROOT / "runs" / "smoke"
    shutil.rmtree(out, ignore_errors=True)
    said = demo()
    page = out / "report" / "report.html"
    assert str(page) in said and page.stat().st_size > 100_000
    rows = list(csv.DictReader((out / "report" / "results.csv").open()))
    recall = {row["label"]: float(row["t2v_R10"]) for row in rows if row["language"] != "en"}
    assert recall.keys() == {"zero-shot", "translate-test", "linear only", "static adapter", "DASD"}
    assert recall["DASD"] > 2 * recall["zero-shot"], recall
    ceiling = {float(row["t2v_R10"]) for row in rows if row["language"] == "en"}
    assert len(ceiling) == 1, "English is exactly the backbone's for every method"

    again = demo()
    assert "nothing to train" in again and "measured already" in again
    assert "cla loss" not in again
