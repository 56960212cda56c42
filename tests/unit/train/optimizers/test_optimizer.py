"""Optimisers of a stage: formulas by loops in float64, what decays and at what rate, clipping, and runs that go on bit
for bit.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ccr_dist.config import StageConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands
from ccr_dist.train.optimizers.optimizer import BertAdam, clip_each, make_optimizer, rate, set_rate
from tests import toy
from tests.nearness import close

CPU = torch.device("cpu")
RELEASED = {
    "optimizer": "bert_adam",
    "schedule": "bert",
    "clip": "tensor",
    "eps": 1e-6,
    "weight_decay": 0.2,
    "decay_tables": True,
}


def stage(**options) -> StageConfig:
    return StageConfig(**{"steps": 100, "batch": 8, "lr": 0.1, **options})


def parameters(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for name, shape in shapes}


def test_hf_adamw_by_loops():
    """Number by number, with gradients as small as eps, that come and go: moments and step count of a parameter are its
    own.
    """
    named = parameters(("net.a", (2, 3)), ("net.b", (4,)))
    cfg = stage(
        optimizer="hf_adamw",
        schedule="hf_linear",
        warmup=0.075,
        schedule_steps=120,
        weight_decay=0.2,
        betas=(0.9, 0.98),
    )
    optimizer = make_optimizer(cfg, named, CPU)
    slow = {name: [[float(x), 0.0, 0.0, 0] for x in p.detach().flatten()] for name, p in named.items()}
    generator = torch.Generator().manual_seed(1)
    for k in (0, 1, 8, 9, 10, 99):
        lr = 0.1 * (k / 9 if k < 9 else (120 - k) / 111)
        set_rate(optimizer, rate(cfg, k))
        for name, parameter in named.items():
            if name == "net.b" and k % 3 == 0:
                parameter.grad = None
                continue
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1e-8
            for number, g in zip(slow[name], parameter.grad.flatten().tolist(), strict=True):
                p, m, v, t = number
                m, v, t = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g, t + 1
                p -= lr * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (math.sqrt(v) + 1e-8)
                number[:] = [p - lr * (0.2 if name == "net.a" else 0.0) * p, m, v, t]
        optimizer.step()
    for name, parameter in named.items():
        expected = torch.tensor([p for p, *_ in slow[name]], dtype=torch.float64).reshape(parameter.shape)
        close(parameter.detach(), expected)


def test_a_schedule_shorter_than_its_stage_is_refused():
    with pytest.raises(ValueError, match="schedule_steps: 99 are fewer than the 100 steps"):
        stage(schedule_steps=99)
    assert rate(stage(schedule="linear", warmup=0, schedule_steps=200), 100) == pytest.approx(0.05)


def test_bert_adam_by_loops():
    """Number by number, with gradients that come and go, decay in one group and another rate in the other."""
    named = parameters(("net.a", (2, 3)), ("net.b", (4,)))
    cfg = stage(**RELEASED, lr_scale={"net.b": 2.0})
    optimizer = make_optimizer(cfg, named, CPU)
    assert type(optimizer) is BertAdam
    slow = {name: [[float(x), 0.0, 0.0] for x in p.detach().flatten()] for name, p in named.items()}
    generator = torch.Generator().manual_seed(1)
    for k in range(12, 20):
        set_rate(optimizer, rate(cfg, k))
        for name, parameter in named.items():
            if name == "net.b" and k % 3 == 0:
                parameter.grad = None
                continue
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            lr = 0.1 * 0.5 * (1 + math.cos(math.pi * k / 100)) * (2 if name == "net.b" else 1)
            decay = 0.2 if name == "net.a" else 0.0
            for number, g in zip(slow[name], parameter.grad.flatten().tolist(), strict=True):
                p, m, v = number
                m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
                number[:] = [p - lr * (m / (math.sqrt(v) + 1e-6) + decay * p), m, v]
        optimizer.step()
    for name, parameter in named.items():
        expected = torch.tensor([p for p, _, _ in slow[name]], dtype=torch.float64).reshape(parameter.shape)
        close(parameter.detach(), expected)


def test_the_first_steps_of_bert_adam_are_larger_than_those_of_adamw():
    """Without bias correction the first update is (1 - b1) / sqrt(1 - b2) times as large as one of length lr."""
    moved = []
    for name in ("bert_adam", "adamw"):
        named = parameters(("net.a", (3, 3)))
        before = named["net.a"].detach().clone()
        optimizer = make_optimizer(stage(optimizer=name), named, CPU)
        named["net.a"].grad = torch.ones(3, 3, dtype=torch.float64)
        optimizer.step()
        moved.append((before - named["net.a"].detach()).mean().item())
    assert moved == pytest.approx([0.1 * 0.1 / math.sqrt(0.02), 0.1], rel=1e-5)


def test_rate_of_the_released_schedule():
    cfg = stage(schedule="bert", warmup=0.1)
    for k in range(100):
        x = k / 100
        assert rate(cfg, k) == pytest.approx(0.1 * (x / 0.1 if x < 0.1 else 0.5 * (1 + math.cos(math.pi * x))))
    assert rate(cfg, 0) == 0 and rate(cfg, 9) < 0.1
    assert rate(cfg, 10) == pytest.approx(0.1 * 0.5 * (1 + math.cos(0.1 * math.pi)))  # not 1: the small jump
    assert rate(stage(schedule="bert", warmup=0), 0) == 0.1
    assert [rate(stage(warmup=0.1), k) for k in (0, 9, 10)] == pytest.approx([0.01, 0.1, 0.1])


NAMES = (
    ("net.front_end.table.weight", (5, 2)),
    ("net.front_end.linear.weight", (2, 2)),
    ("net.front_end.linear.bias", (2,)),
    ("backbone.model.visual.ln_post.weight", (2,)),
    ("net.text.embeddings.LayerNorm.weight", (2,)),
    ("net.temperature", (1,)),
)


@pytest.mark.parametrize(
    ("options", "decayed"),
    [
        ({}, {"net.front_end.linear.weight"}),
        ({"decay_tables": True}, {"net.front_end.linear.weight", "net.front_end.table.weight"}),
        (
            {"decay_vectors": ("*.ln_*.weight",)},
            {"net.front_end.linear.weight", "backbone.model.visual.ln_post.weight"},
        ),
        (
            {"decay_vectors": ("*.weight", "net.temperature")},
            {name for name, _ in NAMES} - {NAMES[0][0], "net.front_end.linear.bias"},
        ),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "bert_adam"])
def test_what_is_decayed(optimizer, options, decayed):
    named = parameters(*NAMES)
    made = make_optimizer(stage(optimizer=optimizer, weight_decay=0.5, **options), named, CPU)
    before = {name: p.detach().clone() for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    for name, parameter in named.items():
        close(parameter.detach(), before[name] * (0.95 if name in decayed else 1.0))


def test_rates_by_prefix():
    named = parameters(*NAMES)
    optimizer = make_optimizer(stage(lr_scale={"net.": 2.0, "net.front_end.": 0.5}, weight_decay=0.1), named, CPU)
    set_rate(optimizer, 0.01)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in named.items()} == {
        name: 0.01 * (0.5 if "front_end" in name else 2.0 if name.startswith("net.") else 1.0) for name, _ in NAMES
    }
    with pytest.raises(ConfigError, match=r"lr_scale names 'net\.slots\.', but no trained parameter"):
        make_optimizer(stage(lr_scale={"net.slots.": 2.0}), named, CPU)
    with pytest.raises(ConfigError, match=r"decay_vectors names '\*\.norm\.weight'"):
        make_optimizer(stage(decay_vectors=("*.norm.weight",)), named, CPU)


def test_each_tensor_is_clipped_by_itself():
    named = parameters(("a", (3,)), ("b", (2, 2)), ("c", (1,)))
    for name, size in (("a", 4.0), ("b", 0.1)):
        named[name].grad = torch.full_like(named[name], size)
    clip_each([p.grad for p in named.values() if p.grad is not None], 1.0)
    assert float(named["a"].grad.norm()) == pytest.approx(1.0, rel=1e-5)
    close(named["b"].grad, torch.full_like(named["b"], 0.1))
    assert named["c"].grad is None


# Whole runs.


@pytest.fixture
def own_process() -> Iterator[None]:
    """A run listens to signals; give them back."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def recipe(method: str, folder: Path) -> tuple[Path, list[str]]:
    """Config and overrides of a small run: DASD as released, its discriminator in the main optimiser; or all of CLIP,
    as LECCR has it.
    """
    path = toy.dasd(folder, cla=3, cma=2)
    overrides = [f"stages.{stage}.{key}={value}" for stage in ("cla", "cma") for key, value in RELEASED.items()]
    overrides += ['stages.cla.lr_scale={"net.front_end.": 0.5}']
    if method == "dasd":
        return path, [*overrides, "method.discriminator=released", "method.pairing=reversed", "method.adversarial=0.1"]
    frontend = load_config(path).method.frontend.model_dump()  # type: ignore[attr-defined]
    stages = {stage: {"steps": steps, "batch": 10, "lr": 1e-3} for stage, steps in (("cla", 3), ("cma", 2))}
    overrides += [
        f"stages.{stage}.{option}" for stage in stages for option in ("optimizer=hf_adamw", "schedule=hf_linear")
    ]
    return toy.config(folder, {"name": "full", "keep_english": True, "frontend": frontend}, stages), overrides


def train(path: Path, name: str, overrides: list[str], *, stop: bool = False) -> Path:
    """The run's folder, once it is complete, or stopped after one step."""
    config = load_config(path, [f"name={name}", *overrides])
    file = config.folder / "stop"
    if stop:
        config.folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert commands.train([config], test=False, world=None) == (75 if stop else 0)
    file.unlink(missing_ok=True)
    return config.folder


@pytest.mark.parametrize(
    ("method", "state"), [("dasd", "aux.discriminator.layers.0.weight"), ("full", "backbone.model.text_projection")]
)
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, own_process, method, state):
    path, overrides = recipe(method, tmp_path)
    calm = train(path, "calm", overrides)
    for stop in (True, True, False):
        hurt = train(path, "hurt", overrides, stop=stop)
    last = "checkpoints/step-00000005"
    for name in (
        f"{last}/weights.safetensors",
        f"{last}/optimizer.safetensors",
        f"{last}/auxiliary.safetensors",
        "model.safetensors",
    ):
        assert (hurt / name).read_bytes() == (calm / name).read_bytes(), name
    assert {f"{state}/exp_avg", f"{state}/exp_avg_sq"} <= load_file(calm / last / "optimizer.safetensors").keys()
