"""The contrastive loss of 16 k, 64 k and 256 k pairs, d = 768, in bf16, forward and backward: milliseconds and peak
memory of ours, of open_clip's `ClipLoss` and of its plain SigLIP loss. What does not fit is a result, too.

`REFERENCE`: a fused kernel on one Hopper GPU, 65,536 pairs of this width in 48.8 ms and 1.4 GB.
"""

from __future__ import annotations

import argparse
from typing import Any

from tests.benchmarks.contrastive import OUT_OF_MEMORY, measure
from tests.gpu.part import Found, run

LOSSES = ("tiled", "gathered", "clip", "siglip")
REFERENCE = {"pairs": 65_536, "ms": 48.8, "gb": 1.4}


def losses(found: Found) -> None:
    import torch

    sizes, dim = ((64, 256), 64) if found.cpu else ((16_384, 65_536, 262_144), 768)
    for pairs in sizes:
        lines = {name: one(found, name, pairs, dim) for name in LOSSES}
        fitting = {name: line for name, line in lines.items() if line != OUT_OF_MEMORY}
        for name, line in lines.items():
            found.line(pairs=pairs, dim=dim, dtype="bfloat16", loss=name, **compared(line, fitting, pairs))
        values = {name: fitting[name]["value"] for name in ("tiled", "gathered", "clip") if name in fitting}
        for name, value in values.items():
            if name != "clip" and "clip" in values:  # ClipLoss forms its logits in bf16, ours in float32
                found.near(f"loss {name} of {pairs} pairs", value, values["clip"], within=2e-2)
        if not found.cpu:
            torch.cuda.empty_cache()


def one(found: Found, name: str, pairs: int, dim: int) -> Any:
    import torch

    asked = argparse.Namespace(batch=[pairs], dim=dim, device=found.device, threads=1, dtype="bfloat16")
    line = measure(name, asked)
    if not found.cpu:
        torch.cuda.empty_cache()
    return line


def compared(line: Any, fitting: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Milliseconds, GB, and how many times the others' these are."""
    if line == OUT_OF_MEMORY:
        return {"result": OUT_OF_MEMORY}
    values = {"ms": round(1e3 * line["s"], 2), "gb": round(line["mib"] * 2**20 / 1e9, 3)}
    ratios: dict[str, Any] = {
        f"time/{other}": round(line["s"] / fitting[other]["s"], 3) for other in ("clip", "siglip") if other in fitting
    }
    if pairs == REFERENCE["pairs"]:
        ratios |= {
            "time/reference": round(values["ms"] / REFERENCE["ms"], 2),
            "memory/reference": round(values["gb"] / REFERENCE["gb"], 2),
        }
    return values | ratios


if __name__ == "__main__":
    run(losses)
