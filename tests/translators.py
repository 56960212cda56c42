"""What tests of translation engines share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ccr_dist.generate.engines.base import make_translator

SENTENCES = [
    "A yellow lemon.",
    "two dogs are playing in the snow",
    "man gesturing NO",
    "hundred points",
    "flushed face",
    "person bowing",
]


def loaded(folder: Path, target: str, source: str = "en", **options: Any) -> Any:
    """The engine `transformers` with the model in `folder`, ready to translate on the CPU."""
    engine = make_translator(
        "transformers", source, target, {"model": str(folder), "max_new_tokens": 8, "device": "cpu", **options}
    )
    engine.load()
    return engine
