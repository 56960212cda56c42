"""Stages in closed form: their cost by hand, what is traced beside what is computed, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ccr_dist import devices
from ccr_dist.cli import app
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import from_dict
from ccr_dist.plan.cost.collectives import Ranks, Wire
from ccr_dist.plan.cost.fit import AGREEMENTS, fit_memory, fit_time
from ccr_dist.plan.cost.machine import CORE, REACHED, Machine, machine_of
from ccr_dist.plan.measure import _rate, _Stopwatch
from ccr_dist.plan.step.fit import Captions, FitTrace, trace_fit
from ccr_dist.plan.step.operators import SOLVERS, Kind
from tests import every_method

PRODUCT = Kind("product", 1000, 1000, 1000, 1, 2e9, 12e6, "fp64")
SOLVED = Kind("cholesky", 1000, 1000, 1, 1, 1e9 / 3, 16e6, "fp64")
ROWS = 8
FITTED = FitTrace(
    stage="fit", captions=Captions(total=1000, block=100, blocks=10), frozen_bytes=5_000, trained_bytes=500,
    sums=(800, 200), drawn=0, found=50, operators={"block": {PRODUCT: 3}, "add": {}, "solve": {SOLVED: 2}},
    highest={"begin": 0, "block": 2_000, "next": 3_000, "add": 2_500, "sums": 4_000, "solve": 6_000},
)  # fmt: skip


def machine(world: int, **changes: Any) -> Machine:
    ranks = Ranks(1, world, Wire(1e-6, 1e9), Wire(0, 1e9))
    return replace(Machine("test", ranks, 1e12, 1e15, 0.0, queued=True, rates={"fp64": 1e11}), **changes)


def test_ranks_share_the_sums_and_one_of_them_solves() -> None:
    one, four = (fit_time(FITTED, machine(world), threads=2) for world in (1, 4))
    assert one.parts["compute"] == pytest.approx(10 * 3 * 2e9 / 1e11)
    assert four.parts["compute"] == pytest.approx(3 * 3 * 2e9 / 1e11), "ten blocks are three turns of four ranks"
    assert one.parts["solve"] == four.parts["solve"] == pytest.approx(2 / 3 * 1e9 / (2 * CORE * REACHED["cholesky"]))
    assert one.parts["collectives"] == 0 and not one.sent
    ranks = machine(4).ranks
    reduced = sum(ranks.all_reduce(size) for size in FITTED.sums) + AGREEMENTS * 3 * ranks.all_reduce(4)
    assert four.parts["collectives"] == pytest.approx(reduced + ranks.all_gather(FITTED.found))
    assert four.sent["all_reduce"] == pytest.approx(1.5 * (1_000 + 4 * AGREEMENTS * 3), abs=3)
    assert four.total == sum(four.parts.values()) and not four.saves


def test_reading_twice_where_captions_are_drawn_first() -> None:
    plain = fit_time(FITTED, machine(1), threads=1, rows_per_s=100)
    drawn = fit_time(replace(FITTED, drawn=8), machine(1), threads=1, rows_per_s=100)
    assert (plain.parts["data"], drawn.parts["data"]) == (10.0, 20.0)
    assert fit_time(FITTED, machine(1), threads=1, rows_per_s=1).saves, "sums are saved every minute"


def test_memory_on_a_gpu_and_on_a_cpu() -> None:
    gpu, host = fit_memory(FITTED, world=1, saves=False, host=False, process=7)
    assert gpu == {"frozen": 5_000, "trained": 500, "sums": 1_000, "workspace": 2_000, "process": 7}
    assert host == 6_000, "what is solved lies on the CPU"
    saved, _ = fit_memory(FITTED, world=1, saves=True, host=False)
    assert saved["sums"] + saved["workspace"] == 4_000
    cpu, host = fit_memory(FITTED, world=1, saves=False, host=True)
    assert cpu["sums"] + cpu["workspace"] == 6_000 and host == 0
    told, _ = fit_memory(replace(FITTED, found=4_000), world=2, saves=False, host=True)
    assert told["sums"] + told["workspace"] == 1_000 + 3 * 4_000, "solutions are sent to the other ranks"


def test_speeds_in_float64() -> None:
    h100 = machine_of(devices.named("h100-80gb"), gpus=1, per_node=1, precision="bf16")
    assert h100.seconds(PRODUCT)[0] == pytest.approx(2e9 / (0.7 * 67e12))
    with pytest.raises(ConfigError, match=r"has no tflops\.fp64, in which stages in closed form sum up"):
        machine(1, rates={}).seconds(PRODUCT)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_solvers_are_measured_on_what_they_can_solve(name: str) -> None:
    rate = _rate(_Stopwatch(torch.device("cpu"), "cpu"), torch.float64, name, 12, 8, 1, 1)
    assert 0 < rate < 1e15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", ["map", "kernel"])
def test_what_is_traced_is_what_is_computed(folder: Path, name: str) -> None:
    made = trace_fit(from_dict(every_method.config(folder, name), name=name), "fit", captions=ROWS)
    method = every_method.build(folder, name)
    backbone, rows = method.backbone, {"query": torch.randn(ROWS, every_method.QUERY_WIDTH)}
    with torch.no_grad():
        rows["english"] = torch.randn(ROWS, backbone.text_features(["a"]).shape[1])
        rows["visual"] = torch.randn(ROWS, backbone.image_features(torch.zeros(1, 3, 32, 32)).shape[1])
        if number := method.drawn("fit"):
            method.begin("fit", torch.randn(number, every_method.QUERY_WIDTH))
        with FlopCounterMode(display=False) as counter:
            sums = method.statistics("fit", "es", rows)
        found = [weights for _, weights in method.solutions("fit", sums)]
    assert sorted(made.sums) == sorted(8 * each.numel() for each in sums.values())
    assert made.found == sum(4 * each.numel() for weights in found for each in weights.values())
    assert counter.get_total_flops() == sum(kind.flops * n for kind, n in made.operators["block"].items())
    assert made.trained_bytes == sum(4 * each.numel() for each in method.net.parameters())
    solved = {kind.name for kind in made.operators["solve"]}
    assert {"eigh", "svd"} <= solved if name == "map" else {"cholesky", "triangular", "cholesky_solve"} <= solved
    assert made.highest["sums"] > made.highest["next"] > made.highest["block"] >= sum(made.sums)
    assert "its columns are not there" in made.notes[0]


def test_captions_without_pictures_have_sums_of_their_own(folder: Path) -> None:
    """A kernel adds the two up when it solves; how many they are is not known."""
    values = every_method.config(folder, "kernel")
    alone = trace_fit(from_dict(values, name="kernel"), "fit", captions=ROWS)
    values["data"]["texts"] = [{"path": "elsewhere"}]
    both = trace_fit(from_dict(values, name="kernel"), "fit", captions=ROWS)
    method = every_method.build(folder, "kernel")
    width = method.backbone.image_features(torch.zeros(1, 3, 32, 32)).shape[1]
    rows = {"query": torch.randn(ROWS, every_method.QUERY_WIDTH), "visual": torch.randn(ROWS, width)}
    with torch.no_grad():
        rows["english"] = torch.randn(ROWS, method.backbone.text_features(["a"]).shape[1])
        method.begin("fit", torch.randn(method.drawn("fit"), every_method.QUERY_WIDTH))
        sums = method.statistics("fit", "es", rows)
        del rows["visual"]
        sums |= method.statistics("fit", "es", rows)
    assert sorted(both.sums) == sorted(8 * each.numel() for each in sums.values())
    assert both.captions.apart and len(both.sums) > len(alone.sums)
    assert both.operators["block"] == alone.operators["block"]
    assert both.operators["texts"] and both.operators["add_texts"]
    assert all(both.highest[phase] > alone.highest[phase] for phase in ("next", "add", "sums", "solve"))
    assert "captions of data.texts have sums of their own" in both.notes[0] and "data.texts" not in alone.notes[0]


def test_blocks_without_pictures_take_their_own_time() -> None:
    def compute(fitted: FitTrace, phase: str) -> float:
        return fit_time(replace(fitted, operators={phase: {PRODUCT: 3}}), machine(1), threads=1).parts["compute"]

    assert compute(FITTED, "texts") == 0, "there are none"
    quarter = replace(FITTED, captions=replace(FITTED.captions, apart=True, texts=250))
    for phase, share in (("block", 0.75), ("texts", 0.25)):
        assert compute(quarter, phase) == pytest.approx(share * compute(FITTED, "block"))
    higher = replace(quarter, highest=FITTED.highest | {"add_texts": 5_000})
    parts, _ = fit_memory(higher, world=1, saves=False, host=False)
    assert parts["sums"] + parts["workspace"] == 5_000


def test_the_memory_of_a_kernel_grows_with_the_square_of_its_landmarks(folder: Path) -> None:
    """At its highest there are at least its sums, the landmarks' own kernel, its factor, a system and its factor."""

    def solving(landmarks: int) -> int:
        values = every_method.config(folder, "kernel")
        values["method"] |= {"landmarks": landmarks, "pictures": [0.0]}
        return trace_fit(from_dict(values, name="kernel"), "fit", captions=64).highest["solve"]

    assert solving(4096) / solving(2048) == pytest.approx(4, rel=0.02)
    assert solving(2048) > 5 * 8 * 2048**2


def plan(folder: Path, *words: object, code: int = 0, **changes: Any) -> str:
    values = every_method.config(folder, "map")
    for section, more in changes.items():
        values[section] = {**values.get(section, {}), **more}
    file = folder / "map.yaml"
    file.write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["plan", str(file), "--device", "h100-80gb", *map(str, words)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split()) if code else done.stdout


def test_a_plan_of_a_stage_in_closed_form(folder: Path) -> None:
    """Options for gradients change nothing, which is said."""
    words = ("--gpus", "1,8", "--captions", "100000", "--strategies", "ddp,zero3", "--json")
    found = json.loads(plan(folder, *words, runtime={"micro_batch": 4, "gradient_checkpointing": True}))
    ways = {(each["gpus"], each["strategy"]): each for each in found["options"]}
    assert "so that it shards nothing" in ways[8, "zero3"]["refused"]
    one, eight = (ways[at]["stages"][0] for at in ((1, "single"), (8, "ddp")))
    assert one["batch"] == 100_000 and one["steps"] == 1 and one["fits"] and one["micro_batch"] is None
    assert sum(v for k, v in one["seconds"].items() if k != "step") == pytest.approx(one["seconds"]["step"])
    assert one["seconds"]["compute"] > 5 * eight["seconds"]["compute"] > 0
    assert one["seconds"]["solve"] == eight["seconds"]["solve"] > 0 == one["seconds"]["collectives"]
    assert eight["sent"]["all_reduce"] > 0 < one["host_bytes"]
    notes = " ".join(one["notes"])
    assert "runtime.micro_batch and runtime.gradient_checkpointing change nothing" in notes
    assert "solved on the CPU of one process" in notes
    assert found["recommendations"][1]["reason"].count("stage 'fit' is mostly") == 1


def test_what_cannot_be_planned_of_a_stage_in_closed_form(folder: Path) -> None:
    code = ConfigError.exit_code
    assert "which cannot be counted" in plan(folder, code=code)
    assert "save their sums every minute" in plan(folder, "--captions", "9", "--failures", "llama3", code=code)


def test_captions_are_counted_where_the_columns_are(tmp_path: Path) -> None:
    from ccr_dist.methods.run_config import load_config
    from tests import query_side

    made = trace_fit(load_config(query_side.config(tmp_path)), "fit")
    assert made.captions == Captions(total=60, block=5, blocks=12) and not made.notes
