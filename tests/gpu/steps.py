"""Training steps of DASD (CMA) and LECCR on CLIP ViT-B/32 with noise pictures: samples/s, MFU, peak memory.

DASD beside the published loop (`benchmarks/published_dasd.py`) in fp32 and by bf16 autocast, on the same batches and
from the same weights; the first loss in fp32 is compared. LECCR as released, whose loop is not written anew here: its
lines are this project's alone. Made-up captions and tokeniser: time does not depend on what words mean.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import itertools
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import dasd_data, dasd_speed, methods
from tests.benchmarks.record import out_of_memory
from tests.gpu.part import Found, run
from tests.tiny import tiny_clip_config

SYLLABLES = [a + b + c for a, b, c in itertools.product("bdfgklmnprst", "aeiou", ["", "l", "n", "r", "s"])]
EXACT = {"ours": True, "rows": "used", "pad": "packed"}
CACHED = {"visual": "feature.image", "source_feature": "feature.en"}
LINES: list[tuple[str, dict[str, Any]]] = [
    ("published loop, fp32", {}),
    ("ours, the same, fp32", EXACT),
    ("published loop, bf16", {"peer.half": True}),
    ("ours, the same, bf16", {**EXACT, "precision": "bf16"}),
    ("ours, cached features, bf16", {**EXACT, **CACHED, "precision": "bf16"}),
]


def steps(found: Found) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        asked = sizes(found.cpu, work)
        texts(work, asked.rows)
        dasd_data.embeddings(work / "mbert", pieces(asked.pieces), 3)
        dasd_data.build(asked)
        dasd(found, asked)
        leccr(found, asked)


def sizes(cpu: bool, work: Path) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    shared = {"work": work, "captions": work, "steps": 2 if cpu else 6, "threads": 1 if cpu else cores}
    if cpu:
        model = tiny_clip_config(work / "clip").model
        return argparse.Namespace(**shared, model=model, device="cpu", batch=4, rows=12, workers=0, pieces=600)
    workers = max(1, min(12, cores - 2))
    return argparse.Namespace(
        **shared, model="ViT-B-32", device="auto", batch=256, rows=512, workers=workers, pieces=dasd_data.PIECES
    )


def dasd(found: Found, asked: argparse.Namespace) -> None:
    """Every line; ours and the published loop begin with the same loss in fp32."""
    done: dict[str, dict[str, Any]] = {}
    for name, line in LINES:
        job = {"stage": "cma", "line": line, "steps": asked.steps}
        done[name] = measured(
            lambda job=job: (dasd_speed.ours if "ours" in job["line"] else dasd_speed.peer)(asked, job)
        )
        found.line(method="dasd", line=name, batch=asked.batch, **shown(done[name]))
    for precision, within in (("fp32", 1e-3), ("bf16", 3e-2)):
        peer, mine = done[f"published loop, {precision}"], done[f"ours, the same, {precision}"]
        if "losses" in peer and "losses" in mine:
            found.near(f"DASD's first loss in {precision}", mine["losses"][0], peer["losses"][0], within=within)
            found.line(method="dasd", times_published_loop=rate(mine) / rate(peer), precision=precision)


def leccr(found: Found, asked: argparse.Namespace) -> None:
    from ccr_dist.methods.run_config import from_dict

    encoder = asked.work / "encoder"
    dasd_data.embeddings(encoder, pieces(asked.pieces), 3, layers=1 if found.cpu else 12)
    asked.backbone = asked.model
    root = asked.work / "described" / "train"
    methods.build(root, argparse.Namespace(**{**vars(asked), "batch": asked.rows}))
    for precision in ("fp32", "bf16"):
        config = methods.config("leccr", "plain" if precision == "fp32" else "bf16", root, asked)
        config["method"] |= {"text_encoder": str(encoder)} | ({"dim": 12, "heads": 2} if found.cpu else {})
        config["runtime"] |= {"threads": asked.threads}
        line = measured(lambda config=config: methods.measure(from_dict(config, name="bench")))
        found.line(method="leccr", line=precision, batch=asked.batch, **shown(line))
        if line.get("refused", "out of memory") != "out of memory":
            found.wrong(f"LECCR in {precision} was refused: {line['refused']}")


def measured(work: Any) -> dict[str, Any]:
    """What `work` finds, or that it did not fit; on a GPU its own peak memory."""
    import torch

    gc.collect()  # the model of the line before is in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return work()
    except (Exception, SystemExit) as error:  # `dasd_speed.ours` ends its program
        if not out_of_memory(error):
            raise
        return {"refused": "out of memory"}


def rate(line: dict[str, Any]) -> float:
    rates = sorted(line["rates"][1:])
    return rates[len(rates) // 2]


def shown(line: dict[str, Any]) -> dict[str, Any]:
    if "refused" in line:
        return {"result": line["refused"]}
    speed = line.get("speed", {})
    kept = {key: value for key, value in speed.items() if key == "mfu" or key.endswith("_s")}
    return {
        "samples_per_s": round(rate(line), 2),
        "peak_mb": line["peak_mb"],
        "losses": line["losses"],
        **{key: float(f"{value:.4g}") for key, value in kept.items()},
    }


def pieces(number: int) -> list[tuple[str, float]]:
    """Of a made-up language: special ones, letters, and words of one to three syllables, more frequent ones first."""
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    letters = [(letter, -12.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = itertools.chain.from_iterable(itertools.product(SYLLABLES, repeat=count) for count in (1, 2, 3))
    return special + letters + [("▁" + "".join(word), -4.0) for word in itertools.islice(words, number - 31)]


def texts(folder: Path, rows: int) -> None:
    """train.{en,de}.{1..5}.gz, as `dasd_speed.py` reads captions: 9 to 15 words a line."""
    dice = random.Random(0)
    words = ["".join(word) for word in itertools.islice(itertools.product(SYLLABLES, repeat=2), 2000)]
    for lang, number in itertools.product(("en", "de"), range(1, 6)):
        lines = (" ".join(dice.choices(words, k=dice.randrange(9, 16))) for _ in range(rows))
        (folder / f"train.{lang}.{number}.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


if __name__ == "__main__":
    run(steps)
