"""The command line: light to start, and wrong input ends with one message and the exit code of its kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import toy

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "torch", "transformers", "open_clip", "accelerate", "matplotlib", "tensorboard", "mteb", "datasets")


def ccr_dist(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ccr_dist", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_starting_and_checking_configs_needs_no_heavy_package(tmp_path: Path) -> None:
    config = toy.dasd(tmp_path)
    code = f"""
import sys
from ccr_dist import cli
from ccr_dist.methods.run_config import load_config
load_config({str(config)!r})
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("shards", "--help"), ("train", "--help"), ("translate", "--help"), ("config", "show", "--help")],
)
def test_help(arguments: tuple[str, ...]) -> None:
    done = ccr_dist(*arguments)
    assert done.returncode == 0 and "Usage" in done.stdout


def test_config_show_prints_what_would_run(tmp_path: Path) -> None:
    done = ccr_dist("config", "show", toy.dasd(tmp_path), "stages.cla.steps=77")
    assert done.returncode == 0 and "steps: 77" in done.stdout and "checkpoint_every:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "nowhere.yaml"), 2, "nowhere.yaml: no such file"),
        (("evaluate", "nowhere.yaml", "--split", "train"), 2, "expected val or test"),
        (("shards", "inspect", "nowhere"), 3, "nowhere"),
        (("report", "nowhere"), 3, "nowhere"),
    ],
)
def test_wrong_input_is_one_message(arguments: tuple[str, ...], code: int, message: str) -> None:
    done = ccr_dist(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_process_on_its_way_out_keeps_its_exit_code() -> None:
    """Launchers send SIGTERM to all ranks when the first has ended."""
    code = """
import atexit, os, signal, sys
from ccr_dist import cli
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
sys.argv = ["ccr-dist", "train", "nowhere.yaml"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


def test_a_notice_is_one_line_and_other_warnings_keep_their_place() -> None:
    code = """
import warnings
from ccr_dist import cli, errors
cli.app = lambda: (warnings.warn("not trained for 'de'", errors.Notice), warnings.warn("other"))
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, second = done.stderr.splitlines()[:2]
    assert done.returncode == 0 and first == "note: not trained for 'de'" and second.endswith("UserWarning: other")
