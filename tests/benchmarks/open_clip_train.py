"""Training speed against open_clip's own training script, `python -m open_clip_train.main`: same tars, model, batch,
workers and precision.

    python tests/benchmarks/open_clip_train.py [--model ViT-S-32-alt] [--batch 32] [--worlds 1,2] [--steps 8] [--rounds
    3] [--save]

Both train a whole open_clip model contrastively on pictures and English captions: here `method: english, train: all`,
the complete command `ccr-dist train` (one process, or DDP by torchrun). AdamW with the same rates, decay and no
clipping, logits of a rank's own rows with all columns, gathered with gradient. Data: WebDataset tars with jpg and txt,
which this project reads where they are (`shards index`). open_clip crops at random (its `RandomResizedCrop`). Its
script needs two changes to run here at all: it hands DDP a device id that a CPU must not have, and does not know the
empty members by which webdataset marks the end of a tar.

Second table, text side alone: `train: text` against `--lock-image`, where features of pictures are constant: this
project reads them from a cached column, as it does by itself once there is one; the column is made before and not
counted.

A figure is samples between the arrival of log lines, one a step, of both alike, without the first steps; median over
rounds, which alternate. open_clip's own figure (samples/s in its log) is kept beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ccr_dist.data.corpora.index import index
from ccr_dist.generate.jobs.featurise import Featurise
from ccr_dist.generate.runner import run
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from tests.benchmarks.record import ENGLISH_WORDS, noise, record

ROOT = Path(__file__).parents[2]
SAID = re.compile(r"Train Epoch.* ([0-9.]+)/s, ")
STEP = re.compile(r'^\{"step": \d+, "stage": "english"', re.MULTILINE)
PEER = """
import torch
from torch.nn import parallel
wrapped = parallel.DistributedDataParallel
if not torch.cuda.is_available():
    parallel.DistributedDataParallel = lambda module, device_ids=None, **rest: wrapped(module, **rest)
import webdataset.tariterators as tars
expand = tars.tar_file_expander
tars.tar_file_expander = lambda *arguments, **options: (member for member in expand(*arguments, **options) if member)
from open_clip_train.main import main
main({options})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-S-32-alt")
    parser.add_argument("--batch", type=int, default=32, help="a process")
    parser.add_argument("--worlds", default="1,2", help="numbers of processes")
    parser.add_argument("--workers", type=int, default=1, help="loader processes a process")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=8, help="measured; two more warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=256, help="of the pictures")
    parser.add_argument("--save", action="store_true", help="keep the JSON in results/")
    asked = parser.parse_args()
    if importlib.util.find_spec("pandas") is None:
        raise SystemExit("open_clip's training script imports pandas: pip install 'open_clip_torch[training]'")
    worlds = [int(world) for world in asked.worlds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        tars = shards(
            Path(folder),
            asked,
            samples=asked.batch * max(worlds) * (asked.steps + 2),
            count=4 * max(worlds) * asked.workers,
        )
        dataset = indexed(Path(folder), tars, asked)
        lines = [Pair(Path(folder), tars, dataset, asked, world, part) for part in ("all", "text") for world in worlds]
        for _ in range(asked.rounds):
            for line in lines:
                line.measure()
        results = [line.result() for line in lines]
    show(results)
    record(
        "open_clip_train", {**{k: v for k, v in vars(asked).items() if k != "save"}, "lines": results}, save=asked.save
    )


class Pair:
    """Both programs on the same number of processes, training the same part of the model."""

    def __init__(
        self, folder: Path, tars: str, dataset: Path, asked: argparse.Namespace, world: int, part: str
    ) -> None:
        self.folder, self.tars, self.dataset, self.asked, self.world, self.part = (
            folder,
            tars,
            dataset,
            asked,
            world,
            part,
        )
        self.rates: dict[str, list[float]] = {"ours": [], "open_clip": [], "open_clip_says": []}
        self.number = itertools.count()

    @property
    def steps(self) -> int:
        return self.asked.steps + 2

    def measure(self) -> None:
        name = f"{self.part}-{self.world}-{next(self.number)}"
        log = self.folder / f"{name}.log"
        script = self.folder / f"{name}.py"  # torchrun takes a script's options for its own where they begin alike
        script.write_text(PEER.format(options=self.peer(name)))
        self.rates["open_clip"].append(self.rate(self.launch([str(script)], log), log, SAID))
        self.rates["open_clip_says"].append(statistics.median(float(x) for x in SAID.findall(log.read_text())[2:]))
        config = self.folder / f"{name}.yaml"
        config.write_text(json.dumps(self.ours(name)))
        steps = self.folder / "runs" / f"{name}-s0" / "log.jsonl"
        command = ["-m", "ccr_dist", "train", str(config)]
        self.rates["ours"].append(self.rate(self.launch(command, self.folder / f"{name}.ours.log"), steps, STEP))
        print(name, {key: round(values[-1], 2) for key, values in self.rates.items()}, file=sys.stderr)

    def result(self) -> dict[str, Any]:
        found = {key: round(statistics.median(values), 2) for key, values in self.rates.items()}
        return {
            "trained": self.part,
            "processes": self.world,
            **found,
            "ratio": round(found["ours"] / found["open_clip"], 3),
            "rounds": self.rates,
        }

    def launch(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        if self.world > 1:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.world), *command]
        threads = max(1, len(os.sched_getaffinity(0)) // self.world)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=self.folder
            )

    def rate(self, process: subprocess.Popen[bytes], log: Path, line: re.Pattern[str]) -> float:
        """Samples/s between the arrivals of the lines of the second and of the last step."""
        arrivals, begun = list[float](), time.time()
        while process.poll() is None:
            time.sleep(0.02)
            arrivals += [time.perf_counter()] * (
                len(line.findall(log.read_text())) - len(arrivals) if log.exists() else 0
            )
        if process.returncode or len(arrivals) < self.steps:
            said = "".join(
                path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")) if path.stat().st_mtime >= begun
            )
            raise SystemExit(
                f"{log.name}: {len(arrivals)} of {self.steps} steps, exit code {process.returncode}\n{said}"
            )
        return self.asked.batch * self.world * (self.steps - 2) / (arrivals[self.steps - 1] - arrivals[1])

    def peer(self, name: str) -> list[str]:
        asked = self.asked
        options = {
            "--train-data": self.tars, "--train-num-samples": asked.batch * self.world * self.steps,
            "--dataset-type": "webdataset",
            "--model": asked.model, "--batch-size": asked.batch, "--workers": asked.workers, "--epochs": 1,
            "--precision": {"fp32": "fp32", "bf16": "amp_bf16"}[asked.precision], "--lr": 1e-4, "--beta1": 0.9,
            "--beta2": 0.98,
            "--eps": 1e-8, "--wd": 0.2, "--warmup": 0, "--save-frequency": 0, "--log-every-n-steps": 1,
            "--logs": self.folder / "logs",
            "--name": name,
        }  # fmt: skip
        flags = ["--local-loss", "--gather-with-grad", *(["--lock-image"] if self.part == "text" else [])]
        return [*map(str, itertools.chain.from_iterable(options.items())), *flags]

    def ours(self, name: str) -> dict[str, Any]:
        root = str(self.dataset)
        stage = {
            "steps": self.steps,
            "batch": self.asked.batch * self.world,
            "lr": 1e-4,
            "warmup": 0,
            "weight_decay": 0.2,
            "clip_norm": None,
        }
        runtime = {
            "workers": self.asked.workers,
            "precision": self.asked.precision,
            "log_every": 1,
            "checkpoint_every": 10**6,
        }
        return {
            "name": name, "out": str(self.folder / "runs"), "backbone": {"kind": "open_clip",
            "model": self.asked.model},
            "method": {"name": "english", "train": self.part, "positives": "diagonal"},
            "data": {"train": [{"path": root}], "val": str(self.folder / "val"), "queries": {"en": "caption.en"}},
            "stages": {"english": stage}, "runtime": runtime,
        }  # fmt: skip


def shards(folder: Path, asked: argparse.Namespace, *, samples: int, count: int) -> str:
    """WebDataset tars of noise pictures and captions of about 12 words, in `count` tars; their names, with braces."""
    import webdataset

    dice, pictures = random.Random(0), noise(side=asked.side, seed=0)
    for number in range(count):
        with webdataset.TarWriter(str(folder / f"{number:04d}.tar")) as tar:
            for row in range(samples // count + (number < samples % count)):
                text = " ".join(dice.choices(ENGLISH_WORDS, k=dice.randrange(9, 16)))
                tar.write({"__key__": f"{number:04d}-{row:06d}", "jpg": next(pictures), "txt": text})
    return f"{folder}/{{0000..{count - 1:04d}}}.tar"


def indexed(folder: Path, tars: str, asked: argparse.Namespace) -> Path:
    """The tars as a dataset, with a column of their pictures' features; and one of them as a validation set,
    FOLDER/val.
    """
    index([f"{folder}/0000.tar"], folder / "val", split="val", progress=False)
    dataset = index([tars], folder / "train", progress=False).dataset
    backbone = build_backbone(OpenClipConfig(kind="open_clip", model=asked.model))
    run(dataset, Featurise(lambda: backbone, "image"), "feature.image", batch=32, progress=False)
    return folder / "train"


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("trained", "processes", "samples/s", "open_clip", "open_clip says", "ratio")
    for line in lines:
        what = "whole model" if line["trained"] == "all" else "text side (ours: cached features)"
        table.add_row(what, *(str(line[key]) for key in ("processes", "ours", "open_clip", "open_clip_says", "ratio")))
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    main()
