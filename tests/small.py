"""Small batches and methods for the tests of methods: everything on `tiny.py`'s models, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.data.stream.loader import Batch
from ccr_dist.losses.context import Context
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from tests.nearness import close
from tests.tiny import IMAGE_SIZE, TEXTS, tiny_clip_config, tiny_dual_config, tiny_frontend_folder

LANGUAGES = ("es", "to")  # "to" is Tongan, and a name that modules have taken
ENGLISH, SPANISH = TEXTS[:4], (*TEXTS[4:], "el viejo con un sombrero rojo")


def backbone(folder: Path, kind: str) -> Backbone:
    return build_backbone(tiny_dual_config(folder) if kind == "dual" else tiny_clip_config(folder, text=kind))


def front_end(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"embeddings": tiny_frontend_folder(folder), "rows": "all", "start": "scaled", "pad": "context", **changes}


def method(
    name: str,
    backbone: Backbone,
    frontend: dict[str, Any] | None = None,
    seed: int = 0,
    languages=LANGUAGES,
    **options: Any,
) -> Method:
    kind = registry.method(name)
    torch.manual_seed(seed)
    return kind(
        kind.Options(name=name, **({"frontend": frontend} if frontend else {}), **options),
        backbone,
        languages,
        texts=TEXTS,
    )


def batch(rows: int = 4, *, lang: str = "es", seed: int = 0, group: list[int] | None = None, **changes: Any) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "k": 0,
        "lang": lang,
        "slots": torch.arange(rows),
        "items": [f"item{i}" for i in range(rows)],
        "group": torch.tensor(group if group is not None else range(rows), dtype=torch.int64),
        "visual": torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "source_text": list(ENGLISH[:rows]),
        "target_text": list(SPANISH[:rows]),
        "source_feature": None,
        "description": [],
        "substituted": [],
    }
    return Batch(**(fields | changes))


def context(rows: int = 4, *, step: int = 0) -> Context:
    return Context(seed=0, step=step, rows=rows)


def unsettle(module: torch.nn.Module, seed: int = 1) -> None:
    """Moves every parameter away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def same_value_and_gradient(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    """In float64."""
    close(fast, slow)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, retain_graph=True), torch.autograd.grad(slow, inputs), strict=True
    ):
        close(a, b)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Of two vectors, by a loop."""
    dot = torch.stack([a * b for a, b in zip(x, y, strict=True)]).sum()
    return dot / torch.sqrt(torch.stack([a * a for a in x]).sum()) / torch.sqrt(torch.stack([b * b for b in y]).sum())
