"""What `export` reads and makes, for pipelines."""

from __future__ import annotations

from pathlib import Path

from ccr_dist.declare import Folder, Item, Place, Run, Uses

PACKAGES = {
    "sentence-transformers": ("torch", "sentence_transformers"),
    "onnx": ("torch", "onnxscript", "onnxruntime"),
    "peft": ("torch", "peft"),
}


def exporting(model: str, to: str, out: Path, check: str | None) -> Uses:
    """What `export` reads and makes."""
    reads: list[Item] = [] if "://" in model else [Run(model)]
    if check is not None and "://" not in check:
        reads.append(Place(check))
    return Uses(reads=tuple(reads), makes=(Folder(str(out)),), packages=PACKAGES.get(to, ("torch",)))
