"""Folders of text encoders, written file by file and opened as sentence backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def load_sentence(folder: Path) -> Backbone:
    return build_backbone(SentenceConfig(kind="sentence", text=str(folder)))
