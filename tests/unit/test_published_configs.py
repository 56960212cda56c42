"""The configs of published settings: every one is valid, no base is left over, and every published number is what the resolved config has.

The tables were copied by hand from the methods' released configs and code (LECCR: configs/ and run_*.sh; DASD: expr/*/config.json,
optimization.py, train.py), so that a slip in a base shows.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.config import RunConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = ("multi30k", "mscoco", "msrvtt_cn", "vatex", "cc300k", "clip")
EVERY = sorted(path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml") if not path.name.startswith("_"))


@functools.cache
def resolved(path: str | Path) -> RunConfig:
    return load_config(CONFIGS / path)


def bases(path: Path) -> list[Path]:
    named = (yaml.safe_load(path.read_text()) or {}).get("base", [])
    return [(path.parent / base).resolve() for base in ([named] if isinstance(named, str) else named)]


@pytest.mark.parametrize("path", EVERY, ids=[str(path.relative_to(CONFIGS)) for path in EVERY])
def test_valid_short_and_consistent(path: Path) -> None:
    config = resolved(path)
    assert len(path.read_text().splitlines()) <= 20, "one YAML an experiment, short: what is shared goes to a base"
    assert {path.stem for path in EVERY if resolved(path).folder == config.folder} == {path.stem}, "two configs share a run folder"
    learnt = set(config.data.targets)
    if config.stages and config.method.name != "english":
        assert learnt and learnt <= set(config.data.queries), "every learnt language is selected and measured by human captions"
    for lang, column in config.data.targets.items():
        assert column.startswith(f"caption.{lang}.") and config.data.queries[lang] == f"caption.{lang}", "trained on MT, asked by people"


def test_no_base_is_left_over() -> None:
    wanted = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("_")]
    used: set[Path] = set()
    while wanted:
        new = {base for base in bases(wanted.pop()) if base not in used}
        used |= new
        wanted += new
    left = [path for folder in (".", *FOLDERS) for path in (CONFIGS / folder).glob("_*.yaml") if path.resolve() not in used]
    assert not left


def values(config: RunConfig, *keys: str) -> list[Any]:
    whole = config.model_dump()
    found = []
    for key in keys:
        value: Any = whole
        for part in key.split("."):
            value = value[part]
        found.append(value)
    return found


DASD = [f"cc300k/dasd_{name}.yaml" for name in ("multi30k", "mscoco_ja", "mscoco_zh")]
DASD += ["multi30k/dasd.yaml", "mscoco/dasd_ja.yaml", "mscoco/dasd_zh.yaml"]
BERT_ADAM = {
    "optimizer": "bert_adam", "schedule": "bert", "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2, "decay_tables": True,
    "clip": "tensor", "clip_norm": 1.0, "warmup": 0.1, "batch": 128,
}  # fmt: skip


@pytest.mark.parametrize("path", [*DASD, *(path.replace("dasd", "mla") for path in DASD)])
def test_dasd_and_mla_train_as_released(path: str) -> None:
    config = resolved(path)
    assert config.backbone.model_dump()["model"] == "ViT-B-16-quickgelu"
    for stage, steps, lr, every in (("cla", 45_000, 2e-4, 3000), ("cma", 7000, 6e-6, 500)):
        published = {**BERT_ADAM, "steps": steps, "lr": lr, "validate_every": every}
        there = config.stages[stage].model_dump()
        assert {key: there[key] for key in published} == published
    options = config.method.model_dump()
    assert options["frontend"] == {"embeddings": "mbert", "rows": "all", "start": "default", "pad": "context", "seed": 0}
    assert (options["mse"], options["contrastive"], options["scale"], options["positives"]) == (1, 1, 100, "diagonal")
    if config.method.name == "dasd":
        published = {
            "rank": 32, "consistency": 0.1, "adversarial": 0.001, "discriminator_lr": 1e-4, "keep_english": True, "use": "both",
            "characteristics": "code", "positions": "all", "cma_semantics": "visual", "start": "default", "cosine": 0,
            "discriminator": "released", "pairing": "reversed",
        }  # fmt: skip
    else:
        published = {"adapter": "bottleneck", "hidden": 256, "keep_english": False, "start": "default", "cosine": 0}
    assert {key: options[key] for key in published} == published


def test_intended_differs_in_the_switches_alone() -> None:
    released, intended = (resolved(f"multi30k/{name}.yaml").model_dump() for name in ("dasd", "dasd_intended"))
    changed = {key: value for key, value in intended["method"].items() if released["method"][key] != value}
    assert changed == {"positives": "group", "positions": "tokens", "discriminator": "isolated", "pairing": "derangement"}
    for stage in ("cla", "cma"):
        assert {**released["stages"][stage], "decay_tables": False} == intended["stages"][stage]
    assert released["data"] == intended["data"] and released["backbone"] == intended["backbone"]


def test_zero_shot_setting_never_trains_on_what_it_is_measured_on() -> None:
    for path in DASD[:3]:
        data = resolved(path).data
        assert [entry.path for entry in data.train] == ["data/cc300k/train"]
        assert not data.val.startswith("data/cc300k") and set(data.targets.values()) == {f"caption.{lang}.uc2" for lang in data.targets}


@pytest.mark.parametrize("folder", ["multi30k", "mscoco"])
def test_finetune_setting_stands_on_its_english_run(folder: str) -> None:
    english = resolved(f"{folder}/english.yaml")
    for path in (path for path in DASD[3:] if path.startswith(folder)):
        config = resolved(path)
        assert config.backbone.weights == str(english.folder)
        # the name that `ccr-dist featurise` gives the features of this backbone
        assert config.data.visual == f"feature.vit-b-16-quickgelu-{english.folder.name}.image"
        assert config.data.source_feature == f"feature.vit-b-16-quickgelu-{english.folder.name}.caption.en"
    stage = english.stages["english"].model_dump()
    published = {**BERT_ADAM, "decay_tables": False, "lr": 3e-6}
    assert {key: stage[key] for key in published} == published
    assert english.method.model_dump() == {"name": "english", "train": "all", "scale": 100, "positives": "diagonal"}


def test_five_epochs_of_english() -> None:
    assert values(resolved("multi30k/english.yaml"), "stages.english.steps") == [5 * (29_000 * 5 // 128)]


# K, n_s, n_x, then the weights of local, softened, diversity and vision terms, and epochs: the release's configs and scripts.
LECCR = {
    "multi30k/leccr_fr.yaml": (4, 3, 2, 0.01, 0.5, 0.01, 0.01, 70),
    "multi30k/leccr_cs.yaml": (4, 3, 2, 0.01, 0.5, 0.01, 0.01, 50),
    "multi30k/leccr_de.yaml": (4, 3, 2, 0.01, 0.0, 0.05, 0.01, 50),
    "mscoco/leccr_zh.yaml": (4, 3, 2, 0.01, 0.5, 0.01, 0.01, 70),
    "mscoco/leccr_ja.yaml": (4, 3, 2, 0.05, 0.3, 0.01, 0.01, 50),
    "msrvtt_cn/leccr.yaml": (2, 2, 2, 0.01, 0.3, 0.03, 0.01, 50),
    "vatex/leccr.yaml": (2, 2, 2, 0.01, 0.3, 0.03, 0.01, 50),  # none released: those of MSR-VTT-CN
}


@pytest.mark.parametrize(("path", "row"), LECCR.items())
def test_leccr_trains_as_released(path: str, row: tuple[float, ...]) -> None:
    config = resolved(path)
    names = ("slots", "slot_blocks", "blocks", "local", "soft", "diversity", "vision")
    assert tuple(getattr(config.method, name) for name in names) == row[:-1]
    stage = config.stages["train"]
    assert stage.steps == row[-1] * (stage.validate_every or 0), "validated once an epoch"
    published = {
        "batch": 128, "lr": 1e-5, "warmup": 0.1, "schedule": "linear", "optimizer": "adamw", "betas": (0.9, 0.98), "eps": 1e-8,
        "weight_decay": 0.01, "clip_norm": None, "lr_scale": {},
    }  # fmt: skip
    assert {key: stage.model_dump()[key] for key in published} == published
    options = config.method.model_dump()
    common = {"mode": "released", "text_encoder": "mbert", "dim": 256, "heads": 8, "temperature": 0.07, "soft_global": 0.8}
    video = {"alpha": 0.9, "minmax": True} if options["visual"] == "video" else {"alpha": 1.0, "minmax": False}
    assert {key: options[key] for key in common | video} == common | video
    assert len(config.data.targets) == 1, "one model a target language"
    assert config.runtime.precision == "fp32" and config.data.description == "description.videochat2"
    if options["visual"] == "image":
        backbone = config.backbone.model_dump()
        published = {"model": "ViT-B-32-quickgelu", "pretrained": "openai", "image_size": 384, "resize": "squash"}
        assert {key: backbone[key] for key in published} == published and config.data.visual == "image"
        assert options["train_image"] and options["least_part"] == 0.5
    else:
        assert options["frame_width"] == {"msrvtt_cn": 4096, "vatex": 1024}[path.partition("/")[0]]


def test_leccr_on_the_towers_of_cclm() -> None:
    config = resolved("multi30k/leccr_cclm_fr.yaml")
    assert (config.stages["train"].steps, config.stages["train"].lr) == (30 * (29_000 * 5 // 128), 3e-5)
    assert values(config, "backbone.image", "method.text_encoder", "method.text_layers", "method.dim") == [
        "swin_base_patch4_window12_384", "xlm-roberta-large", 12, 256,
    ]  # fmt: skip


def test_an_epoch_is_the_pairs_by_the_batch() -> None:
    assert resolved("multi30k/leccr_fr.yaml").stages["train"].validate_every == 29_000 * 5 // 128
    assert resolved("vatex/leccr.yaml").stages["train"].validate_every == 25_991 * 10 // 128


NRCCR = [f"multi30k/nrccr_{lang}.yaml" for lang in ("de", "fr", "cs")] + ["mscoco/nrccr_zh.yaml", "mscoco/nrccr_ja.yaml"]


@pytest.mark.parametrize("path", [*NRCCR, "msrvtt_cn/nrccr.yaml", "vatex/nrccr.yaml"])
def test_nrccr_trains_as_released(path: str) -> None:
    config = resolved(path)
    stage, options = config.stages["train"], config.method.model_dump()
    published = {"batch": 128, "lr": 1e-4, "warmup": 0, "betas": (0.9, 0.999), "weight_decay": 0, "clip_norm": 2, "clip": "global"}
    assert {key: stage.model_dump()[key] for key in published} == published
    assert stage.steps == 50 * (stage.validate_every or 0)
    weights = {"english": 1, "target": 0.6, "back": 0.5, "similarity": 0.4, "temperature": 0.07, "feature": 0.1, "beta": 4}
    weights |= {"adversarial": 0.001, "discriminator_lr": 1e-3, "margin": 0.2, "dim": 1536, "fusion": (0.5,)}
    assert {key: options[key] for key in weights} == weights
    assert (options["visual"], options["train_from"]) == (("image", 3) if path in NRCCR else ("frames", 5))
    assert config.data.back_translations.keys() == config.data.targets.keys() == config.data.translated_queries.keys()
