"""The sizes of published architectures, and what their loss terms weigh."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import small
from tests.nearness import close
from tests.published_configs import DASD, NRCCR, Tiny, build, resolved

pytestmark = pytest.mark.long


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
    assert options.frame_width == {"msrvtt_cn": 4096, "vatex": 1024}.get(path.split("/")[0]) and options.train_image
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
