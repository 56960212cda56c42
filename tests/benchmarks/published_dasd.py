"""DASD trained plainly, doing what the published training loop does, as the peer of `dasd_speed.py`. Written from the
method's description.

In every step: pictures through the image tower, twice in CMA; English captions through the text tower; the two
characteristics of a caption by two passes through the trunk; the adapted tower on 77 positions; AdamW over everything
trained, the whole embedding table with it; fp32. Frozen weights have no gradients here, and attention is PyTorch's
fused one, so this is no slower than the published code, where neither is so. Positions come before captions, as in
CLIP's own code: the layout in which PyTorch's attention is fast.

`Savings` are the first steps away from it that need no other framework.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

TRUNK, RANK = 2, 32


@dataclass(frozen=True)
class Savings:
    images_once: bool = False
    shared_trunk: bool = False
    fused: bool = False
    half: bool = False  # bf16 by autocast, losses too


class PublishedDasd(nn.Module):
    """The trained part around a frozen open_clip model; the table is (V, d). Hidden states h are (77, n, width)."""

    def __init__(self, clip: Any, table: Tensor) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        for transformer in (clip.transformer, clip.visual.transformer):
            transformer.batch_first = False
            for block in transformer.resblocks:
                block.attn.batch_first = False
        width, layers, dim = clip.transformer.width, len(clip.transformer.resblocks), clip.text_projection.shape[1]
        self.table = nn.Embedding.from_pretrained(table, freeze=False)
        self.linear = nn.Linear(table.shape[1], width)
        self.down = nn.ModuleList(nn.Linear(width, RANK) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(RANK, width) for _ in range(layers))
        self.code = nn.Linear(dim + width, width)
        self.cores = nn.ModuleList(nn.Linear(width, RANK * RANK) for _ in range(layers))
        self.to_semantic = nn.Parameter(torch.zeros(width, dim))
        self.discriminator = nn.Sequential(
            nn.Linear(width + dim, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 2)
        )

    def embed(self, ids: Tensor) -> Tensor:
        return (self.linear(self.table(ids)) + self.clip.positional_embedding).transpose(0, 1).contiguous()

    def block(self, layer: int, h: Tensor) -> Tensor:
        return self.clip.transformer.resblocks[layer](h, attn_mask=self.clip.attn_mask)

    def trunk(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for layer in range(TRUNK):
            h = self.block(layer, h)
        return F.layer_norm(h, h.shape[-1:])

    def characteristics(self, ids: Tensor, end: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
        """What is said (n, D) and how (n, width)."""
        said = self.trunk(ids)
        how = said if shared else self.trunk(ids)
        return said[end, torch.arange(len(ids), device=ids.device)] @ self.to_semantic, how.mean(0)

    def encode(self, ids: Tensor, end: Tensor, said: Tensor, how: Tensor) -> Tensor:
        code = self.code(torch.cat([said, how], dim=-1))
        code = code * torch.sigmoid(1.702 * code)
        h = self.embed(ids)
        for layer, (down, up, core) in enumerate(zip(self.down, self.up, self.cores, strict=True)):
            h = self.block(layer, h)
            inner = down(h).transpose(0, 1) @ core(code).unflatten(-1, (RANK, RANK))
            h = h + up(torch.relu(inner).transpose(0, 1))
        return self.clip.ln_final(h)[end, torch.arange(len(ids), device=ids.device)] @ self.clip.text_projection

    def judge(self, how: Tensor, semantic: Tensor, label: int) -> Tensor:
        logits = self.discriminator(torch.cat([how, semantic], dim=-1))
        target = torch.zeros_like(logits)
        target[:, label] = 1
        return F.binary_cross_entropy_with_logits(logits, target)


class Captioned(Dataset[tuple[Any, str, str]]):
    """Rows (picture file, English, target); pictures are read in CMA alone."""

    def __init__(self, rows: Sequence[tuple[Path, str, str]], transform: Any) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Any, str, str]:
        path, english, target = self.rows[number]
        return self.transform(Image.open(path)) if self.transform else 0, english, target


def train(
    model: PublishedDasd,
    stage: str,
    rows: Sequence[tuple[Path, str, str]],
    *,
    transform: Any,
    english_tokens: Any,
    target_tokens: Any,
    batch: int,
    lr: float,
    workers: int,
    savings: Savings = Savings(),
) -> Iterator[dict[str, float]]:
    """Steps over the rows in their order: {"loss", "samples_per_s"} of each.

    english_tokens: texts -> ids (n, 77); target_tokens: texts -> (ids (n, 77), places of their end tokens (n,)) on the
        model's device.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=savings.fused or None)
    device = model.to_semantic.device
    rival = torch.optim.Adam(model.discriminator.parameters(), lr=1e-4)
    loader = DataLoader(Captioned(rows, transform if stage == "cma" else None), batch_size=batch, num_workers=workers)
    begun = time.perf_counter()
    for pixels, english, target in loader:
        pixels = pixels.to(device)
        ids, end = target_tokens(target)
        with torch.autocast(device.type, torch.bfloat16, enabled=savings.half):
            with torch.no_grad():
                source = model.clip.encode_text(english_tokens(english).to(device))
                semantic = model.clip.encode_image(pixels) if stage == "cma" else source
            said, how = model.characteristics(ids, end, savings.shared_trunk)
            strange = semantic.flip(0)

            apart = 0.5 * (model.judge(how.detach(), strange, 1) + model.judge(how.detach(), semantic, 0))
            rival.zero_grad()
            apart.backward()
            rival.step()
            rival.zero_grad()

            found = model.encode(ids, end, said, how)
            loss = F.mse_loss(found, source) + 0.001 * model.judge(how, strange, 0)
            if stage == "cla":
                loss = loss + 0.1 * F.l1_loss(said, semantic)
            else:
                visual = semantic
                if not savings.images_once:
                    with torch.no_grad():
                        visual = model.clip.encode_image(pixels)
                logits = 100 * F.normalize(visual, dim=-1) @ F.normalize(found, dim=-1).T
                right = torch.arange(len(logits), device=device)
                matched = 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right))
                loss = loss + matched + 0.1 * F.smooth_l1_loss(said, visual)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        value = float(loss)  # waits for the device
        now = time.perf_counter()
        yield {"loss": value, "samples_per_s": len(target) / (now - begun)}
        begun = now
