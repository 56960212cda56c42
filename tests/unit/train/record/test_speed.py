"""Observability: what a logged step says about speed, gradients and memory, and that looking changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ccr_dist import devices
from ccr_dist.config import RunConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods.dasd.method import Dasd
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import token_counts
from ccr_dist.train import commands
from ccr_dist.train.record.flops import Flops, peak
from ccr_dist.train.record.phases import STEP
from ccr_dist.train.record.speed import groups_of
from tests import toy

pytestmark = pytest.mark.long


def train(path: Path, *overrides: str) -> RunConfig:
    config = load_config(path, overrides)
    assert commands.train([config], test=False, world=None) == 0
    return config


def steps(config: RunConfig) -> list[dict[str, Any]]:
    lines = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "event" not in line]


def test_looking_changes_nothing_and_says_where_the_time_went(folder: Path) -> None:
    """Counting FLOPs, norms and the profiler on; against a run that logs its last steps alone."""
    seen = train(toy.dasd(folder, name="seen"), "runtime.peak_tflops=0.001", "runtime.profile={first: 2, steps: 2}")
    blind = train(toy.dasd(folder, name="blind"), "runtime.log_every=1000")
    assert (seen.folder / "model.safetensors").read_bytes() == (blind.folder / "model.safetensors").read_bytes()
    assert [line["step"] for line in steps(blind)] == [6, 10], "the last of each stage"

    for line in steps(seen):
        speed = line["speed"]
        assert {f"{name}_s" for name in STEP} < speed.keys() and "slowest_rank" not in speed
        spent = sum(speed[f"{name}_s"] for name in STEP)
        assert speed["longest_s"] == pytest.approx(spent) and speed["sent_bytes"] == 0, "one rank"
        assert 0 < speed["forward_s"] < spent <= line["data_s"] + line["step_s"]
        assert speed["memory_bytes"] > 2**27 and 0 < speed["mfu"] < 1e4 and speed["tokens_per_s"] * spent > 2 * 10
        whole = sum(norm**2 for norm in line["norms"].values()) ** 0.5
        assert whole == pytest.approx(line["grad_norm"], rel=1e-4) and 2 <= len(line["norms"]) <= 8
    assert all("speed" in line for line in steps(blind)) and "mfu" not in steps(blind)[0]["speed"]

    trace = json.loads((seen.folder / "profile" / "trace.json").read_text())
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])
    assert "Self CPU" in (seen.folder / "profile" / "table.txt").read_text()
    names = {path.name for path in (seen.folder / "tensorboard").iterdir()}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(seen.folder / "tensorboard"))
    board.Reload()
    assert names and {"train/speed/forward_s", "train/speed/mfu", "train/loss", "validation/mR"} <= set(
        board.Tags()["scalars"]
    )
    assert any(tag.startswith("train/norms/net.") for tag in board.Tags()["scalars"])


def test_tokens_are_those_of_the_texts_and_a_second_pass_is_not_counted(folder: Path) -> None:
    """The tokens of a step: those of the Spanish captions and of the English ones, with start and end marks, without
    padding.
    """
    plain = train(toy.dasd(folder, name="tokens"), "runtime.trace=samples")
    cut = train(toy.dasd(folder, name="tokens-cut"), "runtime.micro_batch=4")

    def tokens(line: dict[str, Any]) -> float:
        return line["speed"]["tokens_per_s"] * sum(line["speed"][f"{name}_s"] for name in STEP)

    from ccr_dist.methods.build import build_method

    method = build_method(plain, state=json.loads((plain.folder / "method.json").read_text()))
    assert isinstance(method, Dasd)
    traced = [json.loads(line) for line in (plain.folder / "trace" / "rank0.jsonl").read_text().splitlines()]
    for line, other, seen in zip(steps(plain), steps(cut), traced, strict=True):
        numbers = [int(item[-3:]) % 30 for item in seen["items"]]
        spanish = method.front_end.tokenize([toy.SPANISH[n] for n in numbers]).mask.sum()
        ids = method.backbone.tokenizer([toy.ENGLISH[n] for n in numbers])
        expected = int(spanish) + int((ids != 0).sum())
        assert tokens(line) == pytest.approx(expected) == pytest.approx(tokens(other))


def test_flops_are_two_a_multiplication_forward_and_backward() -> None:
    """A linear layer and attention, by hand: its backward has both gradients, the layer's only that of its weight."""
    flops, n, t, width, heads = Flops(), 4, 10, 16, 2
    linear, attention = torch.nn.Linear(8, width), torch.nn.MultiheadAttention(width, heads, batch_first=True)

    def step() -> None:
        h = linear(torch.randn(n, t, 8))
        attention(h, h, h, need_weights=False)[0].sum().backward()

    with flops.counting("de"):
        step()
    products = 2 * n * t * width * (3 * width) + 2 * n * t * width * width
    attended = 2 * 2 * n * heads * t * t * (width // heads)
    # the kernel computes its weights again
    assert flops.known["de"] == 2 * (2 * n * t * 8 * width) + 3 * products + attended * 7 / 2
    with flops.counting("de"):
        step()
    assert len(flops.known) == 1


def test_peaks_by_the_name_of_the_device_and_precision() -> None:
    h100, h200, pcie, nvl, a100 = (
        devices.named(f"NVIDIA {name}").tflops
        for name in ("H100 80GB HBM3", "H200", "H100 PCIe", "H100 NVL", "A100-SXM4-80GB")
    )
    assert h100 == h200 and pcie != nvl and h100 != pcie
    assert a100 == {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5, "fp64": 19.5}
    assert devices.called("NVIDIA GeForce RTX 5090") is None
    assert peak(torch.device("cpu"), "bf16", None) is None and peak(torch.device("cpu"), "bf16", 2.0) == 2e12


def test_groups_are_prefixes_of_one_depth() -> None:
    names = ["net.a.w", "net.a.b", "net.scale", *(f"net.b.{n}.w" for n in range(9))]
    assert {key: len(members) for key, members in groups_of(names).items()} == {"net.a": 2, "net.b": 9, "net": 1}
    assert len(groups_of(names, most=11)) == 11
    assert groups_of(["w"]) == {"w": ["w"]} and list(groups_of(["net.w", "net.b"])) == ["net"]
    deep = groups_of([f"backbone.model.text.blocks.{n}.w" for n in range(12)])
    assert list(deep) == ["backbone.model.text.blocks"]


def test_tally_counts_what_tokenisers_made() -> None:
    before = token_counts.tokens
    token_counts.add(3)
    assert token_counts.tokens == before + 3


def test_weights_and_biases_gets_what_the_log_gets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: the package is no dependency."""
    calls: list[Any] = []

    class Run:
        def define_metric(self, *args: Any, **options: Any) -> None: ...

        def log(self, values: dict[str, Any]) -> None:
            calls.append(values)

        def finish(self) -> None:
            calls.append("finished")

    fake = ModuleType("wandb")
    fake.__spec__ = type(sys.__spec__)("wandb", None)
    started: list[dict[str, Any]] = []
    fake.init = lambda **options: started.append(options) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = train(toy.dasd(folder, name="wb"), "runtime.wandb=retrieval")
    (options,) = started
    assert (options["project"], options["name"], options["config"]["name"]) == ("retrieval", "wb-s0", "wb")
    lines = steps(config)
    sent = [call for call in calls if "train/loss" in call]
    assert [(call["step"], call["train/loss"]) for call in sent] == [(line["step"], line["loss"]) for line in lines]
    assert sent[0]["train/speed/forward_s"] == lines[0]["speed"]["forward_s"] and calls[-1] == "finished"


def test_weights_and_biases_that_is_not_installed_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"runtime\.wandb.*pip install wandb"):
        train(toy.dasd(folder, name="no-wb"), "runtime.wandb=retrieval")
