"""The form of open_clip: a folder that `open_clip.create_model("local-dir:DIR")` loads, and `hf-hub:` once it is there.

English is the backbone itself, trained or not. Another language is one where its front end can be the token table of
open_clip's text transformer: methods `full`, and `lora` with its updates merged, on a tower of open_clip's own.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccr_dist.errors import ConfigError
from ccr_dist.export.job import Job, unit
from ccr_dist.export.layers import Layer
from ccr_dist.export.paths import TextPath
from ccr_dist.export.pictures import PicturePath
from ccr_dist.export.plain import plain
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.open_clip.backbone import CONFIG, TEXT, OpenClipBackbone, described
from ccr_dist.models.towers import OpenClipTower
from ccr_dist.retriever.retriever import Retriever

WEIGHTS = "open_clip_model.safetensors"


def require_pictures(retriever: Retriever, path: PicturePath) -> None:
    """ConfigError where pictures are not the backbone's own."""
    if type(retriever.method).encode_visual is not Method.encode_visual:
        raise ConfigError(f"method {retriever.method.name} has networks of its own behind the image encoder")


@torch.no_grad()
def write(folder: Path, job: Job) -> None:
    """Fills the folder, loads it with open_clip, and compares rows."""
    import open_clip
    from safetensors.torch import save_file

    backbone, path = job.retriever.method.backbone, job.the_path("open_clip")
    if not isinstance(backbone, OpenClipBackbone):
        raise ConfigError(f"backbone {backbone.name} is no model of open_clip")
    if job.picture is None:
        job.picture_of("open_clip")
    known = _config_of(backbone)
    tensors = {name: tensor.detach().clone() for name, tensor in backbone.model.state_dict().items()}
    if path.kind == "target":
        _replace_text(known, tensors, job, path, folder)
    elif path.kind != "english":
        raise ConfigError(f"method {job.retriever.method.name} has a text encoder of its own, which is not open_clip's")
    elif "hf_model_name" in known["text_cfg"]:
        _keep_names(known["text_cfg"])
        path.file.for_transformers().save_pretrained(str(folder))
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    preprocess = {key: list(value) if isinstance(value, tuple) else value for key, value in backbone.preprocess.items()}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": known, "preprocess_cfg": preprocess}, indent=1))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / WEIGHTS))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    for lang in path.languages:
        rows = model.encode_text(tokenizer(job.texts(lang)))
        job.measured.compare(f"text.{lang}", unit(rows.numpy()), job.rows(lang))
    pixels = torch.stack([transform(picture) for picture in job.sample.pictures])
    job.measured.compare("pictures", unit(model.encode_image(pixels).numpy()), job.picture_rows())
    job.facts["scale"] = float(np.exp(float(tensors["logit_scale"])))
    job.usage += [
        "import open_clip",
        "",
        'model, _, transform = open_clip.create_model_and_transforms("local-dir:DIR")',
        'tokenizer = open_clip.get_tokenizer("local-dir:DIR")',
        f"rows = model.encode_text(tokenizer([{job.texts(path.languages[0])[0]!r}]), normalize=True)",
    ]


def _config_of(backbone: OpenClipBackbone) -> dict[str, Any]:
    """The architecture, as open_clip describes it."""
    import open_clip

    name = backbone.model_name
    if name.startswith("local-dir:"):
        found: Any = (described(name) or {}).get("model_cfg")
    elif name.startswith("hf-hub:"):
        from open_clip.factory import _get_hf_config

        found = _get_hf_config(name.removeprefix("hf-hub:"))["model_cfg"]
    else:
        found = open_clip.get_model_config(name)
    if found is None:
        raise ConfigError(f"open_clip has no description of {name}")
    known: dict[str, Any] = copy.deepcopy(found)
    size = backbone.preprocess["size"]
    known["vision_cfg"]["image_size"] = size if isinstance(size, int) else list(size) if size[0] != size[1] else size[0]
    return known


def _keep_names(text: dict[str, Any]) -> None:
    """A text tower of transformers is described by an id, which open_clip reads the architecture from."""
    name = text["hf_model_name"]
    if Path(name).exists() or name == TEXT:
        raise ConfigError(
            f"its text encoder is described by a folder ({name}), which open_clip would look for on every machine;"
            " export to sentence-transformers or onnx"
        )
    text["hf_model_pretrained"] = False


def _replace_text(known: dict[str, Any], tensors: dict[str, Tensor], job: Job, path: TextPath, folder: Path) -> None:
    """The text side of a language: open_clip's transformer on the front end's pieces."""
    method = job.retriever.method
    found = plain(method, path)
    tower = method.backbone.tower
    if not isinstance(tower, OpenClipTower):
        raise ConfigError("its text tower is not open_clip's own, whose token table could be another one")
    own = next(key.removesuffix("token_embedding.weight") for key in tensors if key.endswith("token_embedding.weight"))
    model, state = found.model, tensors
    state[f"{own}token_embedding.weight"] = model.embeddings.token_embedding.weight.detach()
    for number, block in enumerate(model.encoder.layers):
        at, attention = f"{own}transformer.resblocks.{number}.attn.", block.self_attn
        parts = [getattr(attention, f"{part}_proj") for part in "qkv"]
        state[f"{at}in_proj_weight"] = torch.cat([part.weight for part in parts]).detach()
        state[f"{at}in_proj_bias"] = torch.cat([part.bias for part in parts]).detach()
        state[f"{at}out_proj.weight"] = attention.out_proj.weight.detach()
        state[f"{at}out_proj.bias"] = attention.out_proj.bias.detach()
    assert all(isinstance(layer, Layer) for layer in found.layers)
    # The last position is the end token's, whatever its number is.
    known["text_cfg"] |= {
        "vocab_size": len(model.embeddings.token_embedding.weight),
        "hf_tokenizer_name": ".",
        "pool_type": "eos",
        "eos_id": path.file.end,
        "pad_id": path.file.pad,
        "tokenizer_kwargs": {"clean": "whitespace"},
    }
    known["text_cfg"].pop("tokenizer_mode", None)
    known["custom_text"] = bool(known.get("custom_text"))
    path.file.for_transformers().save_pretrained(str(folder))
