"""Pictures and captions go in as the releases prepare them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from tests import tiny
from tests.nearness import close
from tests.published_configs import Tiny, build, resolved

pytestmark = pytest.mark.long


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
