"""The rates of every step, and weight decay and updates of every parameter, as the releases have them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccr_dist.methods.base import Method
from ccr_dist.train.optimizers.optimizer import make_optimizer, rate, set_rate
from tests.nearness import close
from tests.published_configs import DASD, NRCCR, Tiny, build, resolved

pytestmark = pytest.mark.long

# of a picture or video and a caption; for the other sets the train list decides
PAIRS = {"multi30k": 29_000 * 5, "vatex": 25_991 * 10}
EPOCHS = {
    "multi30k/leccr_fr": 70, "multi30k/leccr_cs": 50, "multi30k/leccr_de": 50, "mscoco/leccr_zh": 70,
    "mscoco/leccr_ja": 50,
    "msrvtt_cn/leccr": 50, "vatex/leccr": 50, "multi30k/leccr_cclm_fr": 30,
}  # fmt: skip
PEAKS = {"multi30k/leccr_cclm_fr": 3e-5}


@pytest.mark.parametrize("name", EPOCHS)
def test_leccr_warms_up_and_falls_as_released(name: str) -> None:
    """It drops the last batch of an epoch, and its schedule counts it."""
    stage, pairs, epochs = resolved(f"{name}.yaml").stages["train"], PAIRS.get(name.split("/")[0]), EPOCHS[name]
    steps = stage.steps if pairs is None else epochs * (pairs // 128)
    total = stage.steps if pairs is None else epochs * math.ceil(pairs / 128)
    warm = int(total * 0.1)
    assert stage.batch == 128 and stage.steps == steps == epochs * (stage.validate_every or 0), (
        "validated once an epoch"
    )

    def released(k: int) -> float:
        return k / max(1, warm) if k < warm else max(0.0, (total - k) / max(1, total - warm))

    close([rate(stage, k) for k in range(steps)], [PEAKS.get(name, 1e-5) * released(k) for k in range(steps)])
    assert rate(stage, 0) == 0


STAGES = [(path.replace("dasd", kind), stage) for path in DASD for kind in ("dasd", "mla") for stage in ("cla", "cma")]
STAGES += [("multi30k/english.yaml", "english"), ("mscoco/english.yaml", "english")]


@pytest.mark.parametrize(("path", "name"), STAGES)
def test_dasd_mla_and_english_warm_up_and_fall_as_released(path: str, name: str) -> None:
    stage = resolved(path).stages[name]
    peak, steps, every = {"cla": (2e-4, 45_000, 3000), "cma": (6e-6, 7000, 500)}.get(
        name, (3e-6, stage.steps, stage.validate_every)
    )
    if path == "multi30k/english.yaml":
        steps = 5 * (29_000 * 5 // 128)

    def released(x: float) -> float:
        return x / 0.1 if x < 0.1 else 0.5 * (1 + math.cos(math.pi * x))

    assert (stage.batch, stage.steps, stage.validate_every) == (128, steps, every)
    close([rate(stage, k) for k in range(steps)], [peak * released(k / steps) for k in range(steps)])
    assert (stage.clip, stage.clip_norm) == ("tensor", 1.0)


@pytest.mark.parametrize("path", NRCCR)
def test_nrccr_begins_at_its_rate_and_falls(path: str) -> None:
    """In a straight line, for x 0.99 an epoch and x 0.5 on a plateau of validation (`methods/nrccr/__init__.py`)."""
    stage = resolved(path).stages["train"]
    assert (
        stage.batch == 128
        and stage.steps == 50 * (stage.validate_every or 0)
        and (stage.clip, stage.clip_norm) == ("global", 2)
    )
    close([rate(stage, k) for k in range(stage.steps)], [1e-4 * (1 - k / stage.steps) for k in range(stage.steps)])


def trained(built: Method, stage: str) -> dict[str, nn.Parameter]:
    prefixes = tuple(built.trainable(stage))
    named = {name: p for name, p in built.named_parameters().items() if name.startswith(prefixes)}
    return {name: nn.Parameter(p.detach().double()) for name, p in named.items()}


def leccr_decays(name: str) -> bool:
    """`no_decay` of optim.py: "bias", and the weights of norms that are called LayerNorm, norm, norm1 or norm2."""
    return "bias" not in name and not re.search(r"(LayerNorm|norm|norm1|norm2)\.weight", name)


def dasd_decays(name: str) -> bool:
    """`no_decay` of train.py."""
    return not any(part in name for part in ("bias", "LayerNorm.bias", "LayerNorm.weight"))


def hf_adamw(p: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float) -> Tensor:
    """transformers 4: `exp_avg / (sqrt(exp_avg_sq) + eps)` by a corrected step size, then the decay of what came
    out.
    """
    p = p - lr * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-8)
    return p - lr * decay * p


def bert_adam(p: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float) -> Tensor:
    return p - lr * (m / (v.sqrt() + 1e-6) + decay * p)


def adam(p: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float) -> Tensor:
    return p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


Update = Callable[[Tensor, Tensor, Tensor, int, float, float], Tensor]
OPTIMISERS: list[tuple[str, str, Update, float, Callable[[str], bool], float]] = [
    ("multi30k/leccr_fr.yaml", "train", hf_adamw, 0.01, leccr_decays, 0.98),
    ("msrvtt_cn/leccr.yaml", "train", hf_adamw, 0.01, leccr_decays, 0.98),
    ("cc300k/dasd_multi30k.yaml", "cla", bert_adam, 0.2, dasd_decays, 0.98),
    ("mscoco/dasd_ja.yaml", "cma", bert_adam, 0.2, dasd_decays, 0.98),
    ("multi30k/mla.yaml", "cla", bert_adam, 0.2, dasd_decays, 0.98),
    ("multi30k/english.yaml", "english", bert_adam, 0.2, dasd_decays, 0.98),
    ("multi30k/nrccr_de.yaml", "train", adam, 0.0, lambda name: False, 0.999),
    ("msrvtt_cn/nrccr.yaml", "train", adam, 0.0, lambda name: False, 0.999),
]


@pytest.mark.parametrize("row", OPTIMISERS, ids=[f"{row[0]} {row[1]}" for row in OPTIMISERS])
def test_every_parameter_is_moved_and_decayed_as_released(tiny_towers: Tiny, row: tuple[Any, ...]) -> None:
    path, name, update, decay, decays, second = row
    config = resolved(path)
    stage, built = config.stages[name], build(config, tiny_towers)
    named = trained(built, name)
    optimizer = make_optimizer(stage, named, torch.device("cpu"))
    expected = {each: (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for each, p in named.items()}
    generator = torch.Generator().manual_seed(0)
    for t, k in enumerate((0, 1, stage.steps // 2), start=1):
        set_rate(optimizer, rate(stage, k))
        for each, parameter in named.items():
            if each.endswith("logit_scale"):  # the releases' losses do not use it: no gradient, and no step
                continue
            # eps counts
            gradient = parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1e-6
            p, m, v = expected[each]
            m, v = 0.9 * m + 0.1 * gradient, second * v + (1 - second) * gradient**2
            expected[each] = update(p, m, v, t, rate(stage, k), decay if decays(each) else 0.0), m, v
        optimizer.step()
    close(dict(named), {each: p for each, (p, _, _) in expected.items()})
    built.backbone.trainable_parameters("none")
    vectors = {each for each, p in named.items() if p.ndim < 2 and decays(each)}
    if update is hf_adamw:
        assert "net.temperature.tau" in vectors and any("ln_" in each for each in vectors) == (
            "class_embedding" in " ".join(vectors)
        )
