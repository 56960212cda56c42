"""The configs of published settings: every one is valid, no base is left over, and what they resolve to behaves as the
releases do.

Rates of every step, weight decay and updates of every parameter, the preprocessing of pictures and captions, sizes and
the weights of loss terms are held against the releases' own arithmetic, written anew here from their code (LECCR:
optim.py, scheduler.py, dataset/, configs/, run_*.sh; DASD: optimization.py, train.py, expr/*/config.json; NRCCR:
model.py, do_all_*.sh), on tiny towers of the published architectures.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ccr_dist.config import OpenClipConfig, RunConfig
from ccr_dist.methods.base import Method
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.train.optimizers.optimizer import make_optimizer, rate, set_rate
from tests import small, tiny
from tests.nearness import close

pytestmark = pytest.mark.long

CONFIGS = Path(__file__).parents[3] / "configs"
FOLDERS = ("multi30k", "mscoco", "msrvtt_cn", "vatex", "cc300k", "clip")
EVERY = sorted(
    path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml") if not path.name.startswith("_")
)


@functools.cache
def resolved(path: str | Path) -> RunConfig:
    return load_config(CONFIGS / path)


def bases(path: Path) -> list[Path]:
    named = (yaml.safe_load(path.read_text()) or {}).get("base", [])
    return [(path.parent / base).resolve() for base in ([named] if isinstance(named, str) else named)]


@pytest.mark.parametrize("path", EVERY, ids=[str(path.relative_to(CONFIGS)) for path in EVERY])
def test_valid_short_and_consistent(path: Path) -> None:
    config = resolved(path)
    assert len(path.read_text().splitlines()) <= 20, "one YAML an experiment, short: what is shared goes to a base"
    assert {path.stem for path in EVERY if resolved(path).folder == config.folder} == {path.stem}, (
        "two configs share a run folder"
    )
    learnt = set(config.data.targets)
    if config.stages and config.method.name != "english":
        assert learnt and learnt <= set(config.data.queries), (
            "every learnt language is selected and measured by human captions"
        )
    for lang, column in config.data.targets.items():
        assert column.startswith(f"caption.{lang}.") and config.data.queries[lang] == f"caption.{lang}", (
            "trained on MT, asked by people"
        )


def test_no_base_is_left_over() -> None:
    wanted = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("_")]
    used: set[Path] = set()
    while wanted:
        new = {base for base in bases(wanted.pop()) if base not in used}
        used |= new
        wanted += new
    left = [
        path for folder in (".", *FOLDERS) for path in (CONFIGS / folder).glob("_*.yaml") if path.resolve() not in used
    ]
    assert not left


# Rates.

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


DASD = [f"cc300k/dasd_{name}.yaml" for name in ("multi30k", "mscoco_ja", "mscoco_zh")]
DASD += ["multi30k/dasd.yaml", "mscoco/dasd_ja.yaml", "mscoco/dasd_zh.yaml"]
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


NRCCR = [f"multi30k/nrccr_{lang}.yaml" for lang in ("de", "fr", "cs")] + [
    "mscoco/nrccr_zh.yaml",
    "mscoco/nrccr_ja.yaml",
]
NRCCR += ["msrvtt_cn/nrccr.yaml", "vatex/nrccr.yaml"]


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


# Optimisers.


@pytest.fixture(scope="module")
def tiny_towers(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    return (
        small.backbone(folder / "clip", "clip"),
        tiny.tiny_encoder(folder / "encoder"),
        tiny.tiny_frontend_folder(folder / "mbert"),
    )


Tiny = tuple[Backbone, str, str]
SMALL = {
    "dim": 12,
    "heads": 2,
    "rank": 2,
    "hidden": 4,
    "text_width": 8,
    "image_width": 8,
    "frame_width": 8,
    "train_from": 1,
}


def build(config: RunConfig, towers: Tiny) -> Method:
    """The method of a config, its architecture and options, on towers of two layers."""
    clip, encoder, mbert = towers
    options = config.method.model_dump()
    options |= {key: value for key, value in SMALL.items() if options.get(key) is not None}
    options |= {key: encoder for key in ("text_encoder", "encoder") if key in options}
    if "frontend" in options:
        options["frontend"] = {**options["frontend"], "embeddings": mbert}
    name = options.pop("name")
    frontend = options.pop("frontend", None)
    return small.method(name, clip, frontend, languages=tuple(config.data.targets), **options)


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


# What goes in.


@pytest.mark.parametrize("path", ["multi30k/leccr_fr.yaml", "multi30k/dasd.yaml"])
def test_a_picture_goes_in_as_released(tmp_path: Path, path: str) -> None:
    """LECCR: both sides to 384, the ratio lost; others: the shorter side to 224, the middle. Bicubic, CLIP's mean and
    spread.
    """
    import open_clip

    cfg = resolved(path).backbone
    assert isinstance(cfg, OpenClipConfig)
    plain = tiny.tiny_clip_config(tmp_path / "clip")
    size = cfg.image_size or open_clip.get_model_config(cfg.model)["vision_cfg"].get("image_size", 224)
    made = build_backbone(
        plain.model_copy(update={"image_size": size, "resize": cfg.resize, "positions": cfg.positions})
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    if "leccr" in path:
        assert size == 384 and cfg.positions == "plain"
        seen = picture.resize((384, 384), Image.Resampling.BICUBIC)
    else:
        assert size == 224
        seen = picture.resize((336, 224), Image.Resampling.BICUBIC).crop((56, 0, 280, 224))
    mean, spread = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = torch.from_numpy((np.asarray(seen) / 255 - mean) / spread).permute(2, 0, 1).float()
    close(made.image_transform()(picture), expected)


def test_training_pictures_of_leccr_are_parts_of_at_least_half_and_mirrored(tiny_towers: Tiny) -> None:
    built = build(resolved("multi30k/leccr_fr.yaml"), tiny_towers)
    transform: Any = built.image_transform()
    boxes = [transform._box(Random(seed), 200, 100) for seed in range(300)]
    parts = [(right - left) * (bottom - top) / 20_000 for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert transform.random and 0.49 < min(parts) < 0.55 and min(ratios) > 0.72 and max(ratios) < 1.36
    built.backbone.trainable_parameters("none")


def test_a_caption_goes_in_as_released(tiny_towers: Tiny) -> None:
    leccr: Any = build(resolved("msrvtt_cn/leccr.yaml"), tiny_towers)
    caption = "  A Dog-owner's «best» friend: 50% off, isn't it?!  " + "word " * 40
    assert leccr._prepared([caption]) == [" ".join(["a dog owner s «best» friend 50% off isn t it", *["word"] * 19])]
    assert (leccr.options.caption_tokens, leccr.options.description_tokens) == (200, 200)
    dasd: Any = build(resolved("multi30k/dasd.yaml"), tiny_towers)
    tokens = dasd.front_end.tokenize(["a dog"])
    assert tokens.ids.shape[1] == dasd.backbone.tower.context_length, "padded to the context, and padding counts"
    leccr.backbone.trainable_parameters("none")


# Sizes, and what losses weigh.


def test_architectures_have_the_published_sizes() -> None:
    import open_clip

    sizes = {}
    for path in (
        "multi30k/leccr_fr.yaml",
        "multi30k/nrccr_de.yaml",
        "multi30k/dasd.yaml",
        "multi30k/mla.yaml",
        "multi30k/english.yaml",
    ):
        cfg: Any = resolved(path).backbone
        made = open_clip.get_model_config(cfg.model)
        vision, side = made["vision_cfg"], cfg.image_size or 224
        assert made["quick_gelu"] and cfg.pretrained == "openai" and made["text_cfg"]["context_length"] == 77
        sizes[path.split("/")[1].split(".")[0]] = (
            side,
            1 + (side // vision["patch_size"]) ** 2,
            vision["width"],
            made["embed_dim"],
        )
    assert sizes["leccr_fr"] == (384, 145, 768, 512) and sizes["nrccr_de"] == (224, 50, 768, 512)
    assert sizes["dasd"] == sizes["mla"] == sizes["english"] == (224, 197, 768, 512)


# K, n_s, n_x, then the weights of local, softened, diversity and vision terms: the release's configs.
LECCR = {
    "multi30k/leccr_fr.yaml": (4, 3, 2, 0.01, 0.5, 0.01, 0.01),
    "multi30k/leccr_cs.yaml": (4, 3, 2, 0.01, 0.5, 0.01, 0.01),
    "multi30k/leccr_de.yaml": (4, 3, 2, 0.01, 0.0, 0.05, 0.01),
    "mscoco/leccr_zh.yaml": (4, 3, 2, 0.01, 0.5, 0.01, 0.01),
    "mscoco/leccr_ja.yaml": (4, 3, 2, 0.05, 0.3, 0.01, 0.01),
    "msrvtt_cn/leccr.yaml": (2, 2, 2, 0.01, 0.3, 0.03, 0.01),
    "vatex/leccr.yaml": (2, 2, 2, 0.01, 0.3, 0.03, 0.01),  # none released: those of MSR-VTT-CN
}


@pytest.mark.parametrize(("path", "row"), LECCR.items())
def test_leccr_has_the_released_slots_blocks_and_weights(tiny_towers: Tiny, path: str, row: tuple[float, ...]) -> None:
    """Weights: what a term is worth beside that of a method whose weight of it is 1 (softened: 0.5, which leaves half
    of another).
    """
    config = resolved(path)
    options: Any = config.method
    assert (options.mode, options.processes, options.temperature, options.soft_global) == ("released", 2, 0.07, 0.8)
    video = options.visual == "video"
    assert (options.alpha, options.minmax) == ((0.9, True) if video else (1.0, False)) and len(config.data.targets) == 1
    assert (
        config.runtime.precision == "fp32"
        and config.data.description == "description.videochat2"
        and config.stages["train"].clip_norm is None
    )
    assert options.frame_width == {"msrvtt_cn": 4096, "vatex": 1024}.get(
        path.split("/")[0]
    ) and options.train_image == (not video or True)
    built: Any = build(config, tiny_towers)
    shape = (
        len(built.visual.slots.queries),
        len(built.visual.slots.stack.blocks),
        len(built.visual.interaction.visual.blocks),
    )
    ones = build(
        config.model_copy(
            update={"method": options.model_copy(update=dict.fromkeys(("local", "diversity", "vision"), 1.0))}
        ),
        tiny_towers,
    )
    generator = torch.Generator().manual_seed(0)
    k, width = options.slots, built.visual.width
    sizes = {"visual": (4, 12), "english": (4, 12), "target": (4, 12), "local": (4, k, 12), "slots": (4, k, width)}
    sizes |= {"slot_mean": (4, width), "token_mean": (4, width)}
    outputs = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()} | {
        "scale": torch.tensor([1 / 0.07])
    }
    mine, theirs = (each.losses("train", small.batch(), outputs, small.context()) for each in (built, ones))
    found = {name: float(mine[name] / theirs[name]) for name in ("local", "diversity", "vision")}
    kept = float(
        mine["visual_target"] / small.context().contrastive(outputs["visual"], outputs["target"], scale=1 / 0.07)
    )
    assert ("soft" in mine) == (row[4] > 0)
    close((*shape, found["local"], 1 - kept, found["diversity"], found["vision"]), row, tolerance=1e-5)
    built.backbone.trainable_parameters("none")


def test_leccr_on_the_towers_of_cclm() -> None:
    config: Any = resolved("multi30k/leccr_cclm_fr.yaml")
    found = (config.backbone.image, config.method.text_encoder, config.method.text_layers, config.method.dim)
    assert found == ("swin_base_patch4_window12_384", "xlm-roberta-large", 12, 256)


@pytest.mark.parametrize("path", [*DASD, *(path.replace("dasd", "mla") for path in DASD)])
def test_dasd_and_mla_have_the_released_terms(path: str) -> None:
    options = resolved(path).method.model_dump()
    assert options["frontend"] == {
        "embeddings": "mbert",
        "rows": "all",
        "start": "default",
        "pad": "context",
        "seed": 0,
    }
    assert (options["mse"], options["contrastive"], options["scale"], options["positives"]) == (1, 1, 100, "diagonal")
    if options["name"] == "dasd":
        published = {
            "rank": 32, "consistency": 0.1, "adversarial": 0.001, "discriminator_lr": 1e-4, "keep_english": True,
            "use": "both",
            "characteristics": "code", "positions": "all", "cma_semantics": "visual", "start": "default", "cosine": 0,
            "discriminator": "released", "pairing": "reversed",
        }  # fmt: skip
    else:
        published = {"adapter": "bottleneck", "hidden": 256, "keep_english": False, "start": "default", "cosine": 0}
    assert {key: options[key] for key in published} == published


@pytest.mark.parametrize("path", NRCCR)
def test_nrccr_has_the_released_terms(path: str) -> None:
    config = resolved(path)
    options = config.method.model_dump()
    weights: dict[str, Any] = {
        "english": 1,
        "target": 0.6,
        "back": 0.5,
        "similarity": 0.4,
        "temperature": 0.07,
        "feature": 0.1,
        "beta": 4,
    }
    weights |= {
        "adversarial": 0.001,
        "discriminator_lr": 1e-3,
        "margin": 0.2,
        "dim": 1536,
        "fusion": (0.5,),
        "positives": "diagonal",
    }
    assert {key: options[key] for key in weights} == weights
    assert (options["visual"], options["train_from"]) == (
        ("frames", 5) if path.split("/")[0] in ("msrvtt_cn", "vatex") else ("image", 3)
    )
    assert config.data.back_translations.keys() == config.data.targets.keys() == config.data.translated_queries.keys()


# Settings.


def test_intended_differs_in_the_switches_alone() -> None:
    released, intended = (resolved(f"multi30k/{name}.yaml").model_dump() for name in ("dasd", "dasd_intended"))
    changed = {key: value for key, value in intended["method"].items() if released["method"][key] != value}
    assert changed == {
        "positives": "group",
        "positions": "tokens",
        "discriminator": "isolated",
        "pairing": "derangement",
    }
    for stage in ("cla", "cma"):
        assert {**released["stages"][stage], "decay_tables": False} == intended["stages"][stage]
    assert released["data"] == intended["data"] and released["backbone"] == intended["backbone"]


def test_zero_shot_setting_never_trains_on_what_it_is_measured_on() -> None:
    for path in DASD[:3]:
        data = resolved(path).data
        assert [entry.path for entry in data.train] == ["data/cc300k/train"]
        assert not data.val.startswith("data/cc300k") and set(data.targets.values()) == {
            f"caption.{lang}.uc2" for lang in data.targets
        }


@pytest.mark.parametrize("folder", ["multi30k", "mscoco"])
def test_finetune_setting_stands_on_its_english_run(folder: str) -> None:
    english = resolved(f"{folder}/english.yaml")
    for path in (path for path in DASD[3:] if path.startswith(folder)):
        config = resolved(path)
        assert config.backbone.weights == str(english.folder)
        # the name that `ccr-dist featurise` gives the features of this backbone
        assert config.data.visual == f"feature.vit-b-16-quickgelu-{english.folder.name}.image"
        assert config.data.source_feature == f"feature.vit-b-16-quickgelu-{english.folder.name}.caption.en"
    assert english.method.model_dump() == {"name": "english", "train": "all", "scale": 100, "positives": "diagonal"}
