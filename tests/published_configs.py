"""The configs of published settings, resolved, and their methods on tiny towers of the published architectures.

What the configs resolve to is held against the releases' own arithmetic, written anew in the tests from their code
(LECCR: optim.py, scheduler.py, dataset/, configs/, run_*.sh; DASD: optimization.py, train.py, expr/*/config.json;
NRCCR: model.py, do_all_*.sh).
"""

from __future__ import annotations

import functools
from pathlib import Path

from ccr_dist.config import RunConfig
from ccr_dist.methods.base import Method
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.backbones.backbone import Backbone
from tests import small

CONFIGS = Path(__file__).parents[1] / "configs"
FOLDERS = ("multi30k", "mscoco", "msrvtt_cn", "vatex", "cc300k", "clip")
EVERY = sorted(
    path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml") if not path.name.startswith("_")
)
DASD = [f"cc300k/dasd_{name}.yaml" for name in ("multi30k", "mscoco_ja", "mscoco_zh")]
DASD += ["multi30k/dasd.yaml", "mscoco/dasd_ja.yaml", "mscoco/dasd_zh.yaml"]
NRCCR = [f"multi30k/nrccr_{lang}.yaml" for lang in ("de", "fr", "cs")] + [
    "mscoco/nrccr_zh.yaml",
    "mscoco/nrccr_ja.yaml",
]
NRCCR += ["msrvtt_cn/nrccr.yaml", "vatex/nrccr.yaml"]
SMALL = {
    "dim": 12,
    "heads": 2,
    "rank": 2,
    "hidden": 4,
    "text_width": 8,
    "image_width": 8,
    "frame_width": 8,
    "train_from": 1,
}
Tiny = tuple[Backbone, str, str]


@functools.cache
def resolved(path: str | Path) -> RunConfig:
    return load_config(CONFIGS / path)


def build(config: RunConfig, towers: Tiny) -> Method:
    """The method of a config, its architecture and options, on towers of two layers."""
    clip, encoder, mbert = towers
    options = config.method.model_dump()
    options |= {key: value for key, value in SMALL.items() if options.get(key) is not None}
    options |= {key: encoder for key in ("text_encoder", "encoder") if key in options}
    if "frontend" in options:
        options["frontend"] = {**options["frontend"], "embeddings": mbert}
    name = options.pop("name")
    frontend = options.pop("frontend", None)
    return small.method(name, clip, frontend, languages=tuple(config.data.targets), **options)
