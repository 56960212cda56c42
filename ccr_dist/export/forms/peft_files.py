"""The form of PEFT, for method `lora`: what the languages share as an encoder of transformers, and the low-rank
matrices of each as an adapter of it.

    DIR/base/            the tower with the front end's token table, and its tokeniser: AutoModel, AutoTokenizer
    DIR/<lang>/          adapter_config.json, adapter_model.safetensors
    DIR/pooling.json     how the encoder's states become a row: poolings and layers, whose tensors are in
                         pooling.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.export.forms.modules import save
from ccr_dist.export.job import Job, unit
from ccr_dist.export.layers import Layer, Plain
from ccr_dist.export.pictures import PicturePath
from ccr_dist.export.plain import plain
from ccr_dist.methods.lora.method import Lora
from ccr_dist.models.backbones.sentence_files import _pooled
from ccr_dist.retriever.retriever import Retriever

BASE = "base"


def require_pictures(retriever: Retriever, path: PicturePath) -> None:
    """ConfigError: PEFT adapts encoders, and LoRA adapts the text side alone."""
    raise ConfigError("LoRA adapts the text side alone")


@torch.no_grad()
def write(folder: Path, job: Job) -> None:
    """Fills the folder, loads every adapter with peft, and compares rows."""
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    method = job.retriever.method
    if type(method) is not Lora:
        raise ConfigError(f"--to peft: it holds what method lora trains, and this is a model of method {method.name}")
    paths = [path for path in job.paths() if path.kind == "target"]
    if left := [lang for lang in job.languages if all(lang not in path.languages for path in paths)]:
        job.notes.append(f"{', '.join(left)}: by the backbone alone, without an adapter; not in this export.")
        job.languages = tuple(lang for lang in job.languages if lang not in left)
    if not paths:
        raise ConfigError("--to peft: choose a language that has an adapter, with --lang")
    found = {path: plain(method, path, merge=False) for path in paths}
    first = found[paths[0]]
    save(folder / BASE, paths[0], first)
    for path, form in found.items():
        _adapter(folder / path.languages[0], form, method)
    tensors = {
        f"{number}.{name}": tensor
        for number, layer in enumerate(first.layers)
        if isinstance(layer, Layer)
        for name, tensor in (("weight", layer.weight), ("bias", layer.bias))
        if tensor is not None
    }
    layers = [layer.activation.__name__ if isinstance(layer, Layer) else "normalize" for layer in first.layers]
    (folder / "pooling.json").write_text(json.dumps({"modes": first.modes, "layers": layers, "normalize": True}))
    save_file(
        {name: tensor.float().contiguous() for name, tensor in tensors.items()}, str(folder / "pooling.safetensors")
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder / BASE))
    for path in paths:
        model = PeftModel.from_pretrained(
            AutoModel.from_pretrained(str(folder / BASE)), str(folder / path.languages[0])
        ).eval()
        for lang in path.languages:
            rows = _rows(model, tokenizer, first, job.texts(lang))
            job.measured.compare(f"text.{lang}", unit(rows), job.rows(lang))
    lang = paths[0].languages[0]
    job.usage += [
        "from peft import PeftModel",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("DIR/base")',
        f'model = PeftModel.from_pretrained(AutoModel.from_pretrained("DIR/base"), "DIR/{lang}")',
        "states = model(**tokenizer([...], padding=True, truncation=True, return_tensors='pt')).last_hidden_state",
        "# rows: states pooled, then the layers of DIR/pooling.json",
    ]


def _adapter(place: Path, form: Plain, method: Lora) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    options = method.options
    names = sorted({name.rpartition(".")[2] for name in form.lora})
    wanted = sorted({".".join(name.split(".")[-3:]) for name in form.lora}) if "dense" in names else names
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=wanted,
        base_model_name_or_path=f"../{BASE}", inference_mode=True, bias="none",
    )  # fmt: skip
    place.mkdir()
    config.save_pretrained(str(place))
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in form.lora.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.float().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.float().contiguous()
    save_file(tensors, str(place / "adapter_model.safetensors"))


def _rows(model: Any, tokenizer: Any, form: Plain, texts: list[str]) -> np.ndarray:
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    states = model(**inputs).last_hidden_state
    x = torch.cat([_pooled(mode, states, inputs["attention_mask"]) for mode in form.modes], dim=-1)
    for layer in form.layers:
        x = layer.module()(x) if isinstance(layer, Layer) else F.normalize(x, dim=-1)
    return x.numpy()
