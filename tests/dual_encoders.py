"""Small random dual encoders of transformers, of their real classes, with tokeniser and image processor, saved as real
ones are: `dual_folder(folder, kind)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import TEXTS

KINDS = ("clip", "clip-before", "metaclip_2", "siglip", "siglip2", "chinese_clip", "altclip")
PATCH, SIDE = 8, 32  # pixels
CONTEXT = 16
SPACE = 12


def words(start: str, end: str, pad: str, *, unknown: str = "<unk>", lower: bool = False, last: bool = False) -> Any:
    """A tokeniser of the words and letters of TEXTS. `last`: start and end have the highest ids, as CLIP's have."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    listed = sorted({word for text in TEXTS for word in text.split()})
    letters = sorted({letter for word in listed for letter in word})
    special = [token for token in dict.fromkeys((start, pad, end, unknown)) if token]
    pieces = [*letters, *(f"##{letter}" for letter in letters), *listed]
    ordered = [*pieces, unknown, *(t for t in special if t != unknown)] if last else [*special, *pieces]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(ordered))}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    around = [token for token in (start, end) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=[(token, tokenizer.token_to_id(token)) for token in around]
    )
    marks = {"bos_token": start, "cls_token": start} if start else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, sep_token=end, pad_token=pad, unk_token=unknown, **marks
    )


def dual_folder(folder: Path, kind: str, *, seed: int = 0, tokenizer: Any = None) -> str:
    """`kind`: one of KINDS; "clip-before" is a CLIP whose config has the eos_token_id of before it was right."""
    import transformers

    size = {"height": SIDE, "width": SIDE}
    images: Any = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text: dict[str, Any] = {**tower, "max_position_embeddings": CONTEXT, "projection_dim": SPACE}
    vision: dict[str, Any] = {**tower, "image_size": SIDE, "patch_size": PATCH, "projection_dim": SPACE}
    whole: dict[str, Any] = {"projection_dim": SPACE}
    if kind in ("clip", "clip-before"):
        tokenizer = tokenizer or words("<start>", "<end>", "<end>", last=True)
        text["eos_token_id"] = tokenizer.eos_token_id if kind == "clip" else 2
        name = "CLIP"
    elif kind == "metaclip_2":
        tokenizer, name = tokenizer or words("<s>", "</s>", "<pad>"), "MetaClip2"
        text["eos_token_id"] = tokenizer.eos_token_id
    elif kind == "siglip":
        tokenizer, name, whole = tokenizer or words("", "</s>", "</s>", lower=True), "Siglip", {}
        images, text["projection_size"] = transformers.SiglipImageProcessor(size=size), 16
    elif kind == "siglip2":
        tokenizer, name, whole = tokenizer or words("", "</s>", "<pad>"), "Siglip2", {}
        images = transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=SIDE)
        text["projection_size"] = 16
        vision = {**tower, "patch_size": PATCH, "num_patches": 16}
    elif kind == "chinese_clip":
        tokenizer, name = tokenizer or words("[CLS]", "[SEP]", "[PAD]", unknown="[UNK]"), "ChineseCLIP"
        images = transformers.ChineseCLIPImageProcessor(size=size, do_center_crop=False)
        text["pad_token_id"] = tokenizer.pad_token_id
    else:
        tokenizer, name = tokenizer or words("<s>", "</s>", "<pad>"), "AltCLIP"
        text |= {"max_position_embeddings": CONTEXT + 2, "project_dim": 20, "pad_token_id": tokenizer.pad_token_id}
    text["vocab_size"] = len(tokenizer)
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **whole)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}Model")(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)  # as they are begun, all texts are nearly alike
    tokenizer.save_pretrained(str(folder))
    images.save_pretrained(str(folder))
    model.save_pretrained(str(folder))
    return str(folder)
