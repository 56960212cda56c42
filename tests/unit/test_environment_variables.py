"""Every variable that the code reads or sets is in the table of the docs, and the table lists no others."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ccr_dist import stopfile
from ccr_dist.cluster.elsewhere.words import OURS

ROOT = Path(__file__).parents[2]
PAGE = "docs/environment-variables.md"


def test_a_profile_may_set_none_of_those_that_the_launchers_set() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8").partition("## Set by the launchers")[2]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    described = {match for row in rows for match in re.findall(r"`(CCR_[A-Z_]+)`", row)}
    assert {name for name in OURS if name.startswith("CCR_")} == {*described, stopfile.VARIABLE}
    scripts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "slurm").glob("*.sh"))]
    exported = {
        name
        for script in scripts
        for line in re.findall(r"^\s*export (.*)", script, re.MULTILINE)
        for name in re.findall(r"(?:^|\s)([A-Z_]+)(?==|\s|$)", line.partition(" #")[0])
    }
    assert exported - set(OURS) == {"TMPDIR", "TOKENIZERS_PARALLELISM"}  # a folder made below; and a default


def test_the_table_is_that_of_the_code() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    names = (
        listed.stdout.splitlines()
        if listed.returncode == 0
        else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
    )
    code = [
        ROOT / name
        for name in names
        if name.endswith((".py", ".sh", ".toml", ".yaml", ".yml")) or name.startswith(".ci/")
    ]
    used = {match for path in code for match in re.findall(r"\bCCR_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    tables = [line for line in (ROOT / PAGE).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    described = {match for line in tables for match in re.findall(r"`(CCR_[A-Z_]+)`", line.split("|")[1])}
    assert used == described, PAGE
