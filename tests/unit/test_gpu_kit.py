"""What of the GPU kit goes other ways on a GPU than in its small form, as far as a CPU can tell; and how it ends."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.config import RuntimeConfig
from tests.benchmarks import contrastive, dasd_speed
from tests.gpu import compiled, kit, steps


def test_sizes_on_a_gpu_are_those_that_both_loops_can_set(tmp_path: Path) -> None:
    asked = steps.sizes(False, tmp_path)
    assert isinstance(asked.threads, int) and asked.threads > 0 and asked.workers > 0
    assert RuntimeConfig(threads=asked.threads, workers=asked.workers).threads == asked.threads


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 549755813888 bytes.", False),
        ("CUDA error: out of memory", False),
        ("CUDA error: an illegal memory access was encountered", True),
        ("could not create a memory object", True),
    ],
)
def test_only_what_does_not_fit_is_out_of_memory(monkeypatch: pytest.MonkeyPatch, said: str, fits: bool) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr(contrastive, "loss_of", lambda name: fails)
    asked = argparse.Namespace(batch=[8], dim=4, device="cpu", threads=1, dtype="float32")
    if fits:
        with pytest.raises(RuntimeError):
            contrastive.measure("clip", asked)
    else:
        assert contrastive.measure("clip", asked) == contrastive.OUT_OF_MEMORY


def test_a_step_that_does_not_fit_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.methods.measure", lambda config: {"refused": "out of memory"})
    asked = argparse.Namespace(work=tmp_path, model="ViT-B-32", batch=8, workers=0, threads=1)
    job = {"stage": "cma", "line": steps.EXACT, "steps": 2}
    assert steps.measured(lambda: dasd_speed.ours(asked, job)) == {"refused": "out of memory"}
    monkeypatch.setattr("tests.benchmarks.methods.measure", lambda config: {"refused": "no such option"})
    with pytest.raises(SystemExit, match="no such option"):
        steps.measured(lambda: dasd_speed.ours(asked, job))


def test_a_machine_without_a_compiler_skips_what_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C compiler" in str(compiled.missing_tools())
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(compiled.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert "/nowhere/Python.h" in str(compiled.missing_tools())


def test_a_step_that_compiles_is_none_of_the_later_ones() -> None:
    """On a GPU whose peak is known the first step runs eagerly, and the second one compiles."""
    assert compiled.times([0.5, 30.0, 9.0, 0.1, 0.1, 0.1]) == {"longest_step_s": 30.0, "step_s": 0.1}


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ago: float) -> kit.Kit:
    """A kit of two parts and nine minutes that began some seconds ago."""
    monkeypatch.setattr(kit, "about", lambda cpu: {})
    asked = argparse.Namespace(cpu=True, out=tmp_path, minutes=9.0)
    return kit.Kit(list(kit.PARTS[:2]), asked, time.monotonic() - ago)


def test_minutes_begin_with_the_script_and_end_with_the_last_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(kit, "ended", lambda command, seconds, **options: given.append(seconds))
    made(tmp_path, monkeypatch, ago=100).run()
    first, second = (part.share for part in kit.PARTS[:2])
    whole = 9 * 60 - kit.ENDING
    assert given == pytest.approx([whole * first / (first + second) - 100, whole - 100], abs=5)


def test_a_kit_that_is_stopped_keeps_what_its_part_had_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(command: list[str], seconds: float, **options: Any) -> int | None:
        Path(command[3]).write_text(json.dumps({"lines": [{"measured": 1}], "wrong": []}))
        raise SystemExit(kit.STOPPED)

    monkeypatch.setattr(kit, "ended", stopped)
    assert made(tmp_path, monkeypatch, ago=0).run() == kit.STOPPED
    parts = json.loads((tmp_path / "kit.json").read_text())["parts"]
    assert list(parts) == [kit.PARTS[0].name]
    assert parts["marked"]["state"] == "cut" and parts["marked"]["lines"] == [{"measured": 1}]
