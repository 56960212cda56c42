"""The picture side as modules of sentence-transformers: vision models of transformers as they are, and vision
transformers of open_clip as CLIPVisionModel.

The processor of the latter is Pillow's, which gives the pixels that open_clip's transform gives, but for rounding,
where the picture is resized to a square. Where a crop follows, the two place it differently, so that some pictures are
off by one pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ccr_dist.errors import ConfigError
from ccr_dist.export.clip_blocks import activation, clip_block, known
from ccr_dist.export.forms.modules import denses
from ccr_dist.export.layers import Layer, fill, layers_of
from ccr_dist.export.pictures import PicturePath
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.open_clip.backbone import OpenClipBackbone
from ccr_dist.models.backbones.transformers.backbone import TransformersBackbone
from ccr_dist.retriever.retriever import Retriever


def require(retriever: Retriever, path: PicturePath) -> None:
    """ConfigError where the picture side has no such form."""
    method, backbone = retriever.method, retriever.method.backbone
    if type(method).encode_visual is not Method.encode_visual:
        raise ConfigError(f"method {method.name} has networks of its own behind the image encoder")
    if isinstance(backbone, TransformersBackbone):
        from transformers import CLIPVisionModel

        known(backbone.model.vision_model, CLIPVisionModel)
        return
    visual: Any = getattr(getattr(backbone, "model", None), "visual", None)
    if not isinstance(backbone, OpenClipBackbone) or type(visual).__name__ != "VisionTransformer":
        raise ConfigError(f"the image encoder of {backbone.name} is no vision transformer of open_clip's own")
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        raise ConfigError(f"the image encoder of {backbone.name} is not pooled at its class token")
    if path.steps["resize"] != "squash":
        raise ConfigError(
            "transformers places the crop of a picture differently by a pixel; a backbone with `resize: squash`"
            " has no crop"
        )


def modules(place: Path, retriever: Retriever, path: PicturePath) -> list[Any]:
    """Transformer with a CLIPVisionModel, and the projection; `place`: a folder for the encoder's files."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    backbone: Any = retriever.method.backbone
    if isinstance(backbone, TransformersBackbone):
        known(backbone.model.vision_model, CLIPVisionModel).save_pretrained(str(place))
        backbone.pictures.processor.save_pretrained(str(place))
        last = getattr(backbone.model, "visual_projection", None)
        return [_encoder(place), *denses(() if last is None else tuple(layers_of(last)))]
    visual = backbone.model.visual
    first = visual.transformer.resblocks[0]
    config = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=first.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=first.attn.num_heads,
        image_size=path.size[0],
        patch_size=visual.conv1.kernel_size[0],
        hidden_act=activation(first),
        layer_norm_eps=first.ln_1.eps,
        projection_dim=visual.output_dim,
    )
    model: Any = CLIPVisionModel(config)
    with torch.no_grad():
        model.embeddings.class_embedding.copy_(visual.class_embedding)
        model.embeddings.patch_embedding.weight.copy_(visual.conv1.weight)
        model.embeddings.position_embedding.weight.copy_(visual.positional_embedding)
        fill(model.pre_layrnorm, visual.ln_pre)
        fill(model.post_layernorm, visual.ln_post)
        for block, target in zip(visual.transformer.resblocks, model.encoder.layers, strict=True):
            clip_block(block, target)
    model.eval().save_pretrained(str(place))
    height, width = path.size
    steps = path.steps
    CLIPImageProcessorPil(
        size={"height": height, "width": width}, do_center_crop=False, resample=3, image_mean=steps["mean"],
        image_std=steps["std"], rescale_factor=1 / steps["scale"],
    ).save_pretrained(str(place))  # fmt: skip
    layers = () if visual.proj is None else (Layer(visual.proj.detach().T.cpu()),)
    return [_encoder(place), *denses(layers)]


def _encoder(place: Path) -> Any:
    """The module of a folder with a vision model and its processor."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    return Transformer(
        str(place),
        modality_config={"image": {"method": "forward", "method_output_name": "pooler_output"}},
        module_output_name="sentence_embedding",
    )
