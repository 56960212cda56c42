"""`ccr-dist plan`: of a small run, with what it recommends and refuses; of a job, from a sample of its rows."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.methods.run_config import load_config
from ccr_dist.plan.cost import memory
from ccr_dist.plan.jobs import Rate, Stopwatch, extrapolated, sampled
from ccr_dist.plan.predict import Prediction, Traces
from ccr_dist.plan.recommend import Option, largest_micro_batch, profile, recommend
from tests import toy
from tests.generation import Parrot  # registers the engine `parrot`


def said(*words: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, words)])
    assert done.exit_code == ConfigError.exit_code, done.output
    return done.output


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    stage = {"batch": 64, "lr": 1e-3, "steps": 100}
    return toy.config(folder, {"name": "english", "train": "all"}, {"english": stage}, data={"queries": {"en": "x"}})


def test_another_opinion_on_memory_is_shown(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (config, "--gpus", "1", "--device", "h100-80gb")
    assert "MemTracker" not in said(*words)
    monkeypatch.setattr(memory, "FAR", 0.0)
    assert re.search(r"note: stage 'english': torch's MemTracker sees a peak of .* than the .* planned", said(*words))


def test_a_network_that_runs_twice_is_followed_by_both(tmp_path: Path) -> None:
    """DASD's discriminator does."""
    config = load_config(toy.dasd(tmp_path))
    traces = Traces(config)
    for stage in ("cla", "cma"):
        made = traces.of(stage, 1)
        assert made.opinion and traces.doubts[stage] is None
        forward, backward = (sum(run) for run in zip(*made.block_runs, strict=True))
        assert forward > backward > 0, "frozen blocks around adapters are gathered for the backward, too"


def test_a_plan_as_json(config: Path) -> None:
    words = (config, "--gpus", "1,16", "--device", "h100-80gb", "--strategies", "ddp,fsdp2", "--json")
    found = json.loads(said(*words, "--failures", "llama3"))
    ways = {(each["gpus"], each["strategy"]): each for each in found["options"]}
    assert ways.keys() == {(1, "single"), (1, "fsdp2"), (16, "ddp"), (16, "fsdp2")}
    assert ways[1, "fsdp2"]["refused"] == "it shards nothing on one GPU"
    for way in ways.values():
        for stage in way["stages"]:
            parts = {name: value for name, value in stage["seconds"].items() if name != "step"}
            assert sum(parts.values()) == pytest.approx(stage["seconds"]["step"]) and stage["fits"]
            assert sum(stage["memory"].values()) == stage["peak_bytes"] < stage["room_bytes"]
            assert stage["samples_per_s"] == pytest.approx(64 / stage["seconds"]["step"])
            assert stage["gpu_hours"] == pytest.approx(100 * stage["seconds"]["step"] * way["gpus"] / 3600)
    one, many = ways[1, "single"]["stages"][0], ways[16, "ddp"]["stages"][0]
    assert one["sent"] == {} and one["seconds"]["collectives"] == 0 < many["seconds"]["collectives"]
    assert (many["nodes"], one["nodes"]) == (2, 1) and many["sent"]["all_reduce"] > 0
    best = {each["gpus"]: each for each in found["recommendations"]}
    assert best[1]["command"].startswith(f"ccr-dist train {config}") and best[1]["pipeline_step"] == ""
    assert "--num_machines 2" in best[16]["command"] and "nodes: 2\n    gpus: 8" in best[16]["pipeline_step"]
    assert found["interrupted"][1]["advice"]["every_steps"] >= 1


def test_a_plan_for_people(config: Path) -> None:
    text = said(
        config, "stages.english.batch=32", "--gpus", "2", "--device", "NVIDIA A100-SXM4-40GB", "--strategies", "ddp"
    )
    assert "arithmetic" in text and "2 GPUs: ddp in fp32: it is the fastest that fits" in text
    assert "accelerate launch --config_file launch/accelerate/ddp.yaml --num_processes 2" in text


def test_what_is_recommended_can_be_pasted(config: Path) -> None:
    """Into a shell, and into a pipeline."""
    override = "data.queries={en: caption en}"
    words = ("--gpus", "16", "--device", "h100-80gb", "--strategies", "ddp", "--json")
    [best] = json.loads(said(config, override, *words))["recommendations"]
    assert shlex.split(best["command"])[-4:] == [str(config), override, "--world", "16"]
    step = yaml.safe_load(best["pipeline_step"])["steps"]["train"]
    assert step.pop("command") == f"train {shlex.join([str(config), override])}"
    assert step == {"nodes": 2, "gpus": 8, "launch": "ddp"}


def test_numbers_of_gpus_that_cannot_be_are_refused_before_anything_is_traced(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Traces, "of", lambda *_, **__: pytest.fail("a step was traced"))
    for gpus, why in (("1,128", "has 64 rows a batch"), ("1,12", "not a multiple of the 8 GPUs"), ("1,32", "no units")):
        device = "t4" if gpus == "1,32" else "h100-80gb"
        text = refused(config, "--gpus", gpus, "--device", device, "--nodes-of", "8", "--precision", "fp32,bf16")
        assert why in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "h100-80"), "'h100-80': not in the table of devices; did you mean h100-80gb"),
        ((), "--device is missing"),
        (("--device", "h100-80gb", "--gpus", "12"), "--gpus 12: not a multiple of the 8 GPUs of a node"),
        (("--device", "h100-80gb", "--gpus", "0"), "--gpus 0: expected whole numbers above 0"),
        (("--device", "h100-80gb", "--gpus", "128"), "stage 'english' has 64 rows a batch, fewer than GPUs"),
        (("--device", "h100-80gb", "--strategies", "dpp"), "--strategies dpp: dpp: expected some of ddp,zero1"),
        (("--device", "t4", "--precision", "bf16"), "no units for bf16"),
        (("--device", "h100-80gb", "--calibration", "none.json"), "--calibration none.json: no such file"),
        (("--device", "h100-80gb", "--stall", "3s"), "--stall 3s: only with --failures"),
        (("--device", "h100-80gb", "--failures", "0"), "expected hours above 0"),
        (("--device", "h100-80gb", "--clock", "cpu"), "--clock cpu: only with --measure"),
        (("--device", "h100-80gb", "--captions", "9"), "--captions 9: only for stages in closed form"),
        (("--measure", "--gpus", "1,128"), "stage 'english' has 64 rows a batch, fewer than GPUs"),  # at once
    ],
)
def test_what_cannot_be_planned(config: Path, words: tuple[str, ...], said: str) -> None:
    text = refused(config, "--strategies", "ddp", "--gpus", "1", *words)
    assert said in " ".join(text.split())


@pytest.mark.slow
def test_this_machine_is_measured_and_planned(config: Path, tmp_path: Path) -> None:
    """Two processes of a CPU; the file is used again, and says what it does not know."""
    file = tmp_path / "here.json"
    words = (config, "--strategies", "ddp", "--calibration", file, "--json")
    first = json.loads(said(*words, "--gpus", "1,2", "--measure"))
    again = json.loads(said(*words, "--gpus", "1,2"))
    assert first == again and "torch" in first["device"]
    steps = [each["stages"][0]["seconds"] for each in first["options"]]
    assert all(step["compute"] > 0 and step["overhead"] > 0 for step in steps) and steps[1]["collectives"] > 0
    assert "accelerate/cpu.yaml" in first["recommendations"][1]["command"]
    assert "has no speeds for bf16" in refused(*words, "--precision", "bf16")
    engines = json.loads(file.read_text())["engines"]
    assert engines.keys() == {"ddp", "zero1", "zero2", "zero3", "fsdp2"}
    assert engines["zero3"]["small backward"] > engines["ddp"]["small backward"]
    assert 1e-5 < engines["zero3"]["cut forward"] < 0.1 and 1e-5 < engines["fsdp2"]["block forward"] < 1


def test_a_link_without_speed_is_refused(config: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("gpus: {mine: {title: mine, bandwidth: 0}}\n")
    assert "bandwidth" in refused(config, "--device", own)


def option(strategy: str, step: float, *, gpus: int = 8, peak: int = 10, refused: str | None = None) -> Option:
    seconds = {"compute": step, "memory_traffic": 0.0, "overhead": 0.0, "collectives": 0.0, "data": 0.0, "step": step}
    stage = Prediction("s", gpus, 1, strategy, "bf16", 64, None, {"trained": peak}, peak, 20, seconds, {}, {}, steps=10)
    return Option(gpus, strategy, "bf16", None, () if refused else (stage,), refused)


def parts_that_fit(room: int, *, tried: list[int], cannot: bool = False) -> Any:
    """Predictions for parts of 64 rows, each of which takes a byte, beside 10 bytes that are always there."""

    def made(size: int) -> tuple[Prediction, ...]:
        tried.append(size)
        if cannot and size:
            raise ConfigError("rows meet in the forward")
        held = {"trained": 10, "activations": size or 64}
        return (replace(option("ddp", 1.0).stages[0], memory=held, peak_bytes=10 + (size or 64), room_bytes=room),)

    return made


def test_the_largest_micro_batch_that_fits() -> None:
    def largest(room: int, **changes: Any) -> tuple[int | None, list[int]]:
        tried: list[int] = []
        size, ways = largest_micro_batch(parts_that_fit(room, tried=tried, **changes), 64)
        assert (size is None) != ways[0].fits
        return size, tried

    assert largest(74) == (64, [0])
    assert largest(73) == (32, [0, 32]), "no part lies between the whole and its half"
    assert largest(32) == (22, [0, 16, 22]), "a third, between a half, which has no room, and a quarter"
    assert largest(27) == (16, [0, 16, 22])
    assert largest(11) == (1, [0, 1, 2]), "64 parts"
    assert largest(10) == (None, [0]), "not even one row: none is tried"
    assert largest(40, cannot=True) == (None, [0, 16])


def test_the_simplest_of_the_fastest_is_recommended(config: Path) -> None:
    from ccr_dist.methods.run_config import load_config

    read = load_config(config)

    def best(*several: Option) -> Any:
        return recommend(read, several, per_node=8, path="c.yaml")

    near = best(option("zero3", 1.0), option("ddp", 1.02))
    assert near.option.strategy == "ddp" and "within 3% of the fastest that fits (zero3), and simpler" in near.reason
    assert best(option("zero3", 1.0), option("ddp", 1.2)).option.strategy == "zero3"
    large = best(option("zero3", 2.0), option("ddp", 1.0, peak=30))
    assert large.option.strategy == "zero3" and "ddp would not fit" in large.reason
    assert "runtime.precision=bf16" in large.command and "zero3.yaml" in large.command
    none = best(option("ddp", 1.0, peak=30), option("zero3", 1.0, peak=25), option("zero1", 1.0, refused="no"))
    assert (
        none.option is None and none.command == "" and none.reason.startswith("nothing fits: zero3 in bf16 needs least")
    )
    assert [profile(name, False) for name in ("single", "ddp", "fsdp2")] == ["cpu", "cpu", "fsdp2"]


def test_gpu_hours_of_a_job_from_a_sample(tmp_path: Path) -> None:
    assert Parrot.__name__
    dataset = toy.build(tmp_path, "train")
    before = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}
    words = (dataset.root, "--engine", "parrot", "--prompt", "detail", "--workers", "0", "--batch", "2")
    found = json.loads(said("describe", *words, "--sample", "12", "--gpus", "1,4", "--json"))
    assert found["rate"]["rows"] == 12 and found["rate"]["rows_per_s"] > 0
    one, four = found["plans"]
    assert one["rows"] == four["rows"] == 30 and four["hours"] < one["hours"] <= four["gpu_hours"]
    assert before == {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}, "nothing is written there"


def test_a_sample_is_spread_over_all_shards(tmp_path: Path) -> None:
    dataset = toy.build(tmp_path, "train")
    made = sampled(dataset, ["caption.en"], 6, tmp_path / "sample")
    assert list(made.keys(0)) == [dataset.keys(shard)[0] for shard in range(6)]
    assert made.column("caption.en").value(0, 3) == dataset.column("caption.en").value(3, 0)
    assert Dataset.open(tmp_path / "sample").rows == 6
    with pytest.raises(ConfigError, match="expected at least 2 rows"):
        sampled(dataset, [], 1, tmp_path / "other")


def test_a_rate_with_its_interval() -> None:
    now = iter([100.0, 110.0, 112.0, 114.0, 118.0, 120.0])
    watch = Stopwatch(clock=lambda: next(now))
    for rows in (4, 4, 4, 4, 4):
        watch("kept", {"rows": rows})
    watch("committed", {"rows": 0})
    rate = watch.rate()
    assert (rate.rows, rate.start_s, rate.rows_per_s) == (20, 10.0, 16 / 10.0)
    assert rate.low is not None and rate.high is not None and 1.0 <= rate.low < 1.6 < rate.high <= 2.0
    plan = extrapolated(Rate(20, 36.0, 10.0, 5.0, 20.0), rows=36_000, gpus=2)
    assert (plan.hours, plan.gpu_hours) == pytest.approx((0.51, 1.02))
    assert (plan.low, plan.high) == pytest.approx((2 * (0.01 + 0.25), 2 * (0.01 + 1.0)))


def test_too_small_a_sample_says_nothing() -> None:
    with pytest.raises(DataError, match="gave no rows"):
        Stopwatch().rate()
    watch = Stopwatch()
    watch("kept", {"rows": 64})
    with pytest.raises(DataError, match="larger --sample, or a smaller --batch"):
        watch.rate()
    watch("kept", {"rows": 64})
    assert watch.rate().low is None, "two batches say nothing of how sure they are"
