"""Makes a golden set: what the commands of one version leave on disk, and what they found, for later versions to open.

    python -m tests.golden.make NAME       writes tests/golden/NAME.tar.xz

Run it with the code before a change, to keep what that version writes: a set made by the code under test shows nothing.
Commands are started in a folder of their own and given relative paths, so that the set names no place of a machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ccr_dist import __version__
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.environment import commit
from tests import corpus, tiny, toy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
JOB = (
    "translate",
    "data/train",
    "--engine",
    "shout",
    "--to",
    "xx",
    "--column",
    "caption.xx",
    "--batch",
    "2",
    "--quiet",
)
ROWS, SHARD_ROWS = 20, 5
STAGE = {"batch": 10, "lr": 1e-2, "warmup": 0}


def clip(folder: Path) -> dict[str, Any]:
    """An open_clip model of two towers of two narrow layers, 120 kB; its config."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tower = tiny.tiny_encoder(folder / "text", toy.ALL_TEXTS, width=8)
    tiny.tiny_tokenizer(folder, toy.ALL_TEXTS)
    text: dict[str, Any] = {"hf_model_name": tower, "hf_tokenizer_name": tower, "context_length": 32}
    text |= {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    model_cfg = {"embed_dim": tiny.DIM, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"size": 32}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return {"kind": "open_clip", "model": f"local-dir:{folder}"}


def ccr(*words: str, code: int = 0, module: str = "ccr_dist") -> str:
    """Runs a command to its end; what it printed."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, env=environment())
    if done.returncode != code:
        raise RuntimeError(
            f"{' '.join(words)}: exit code {done.returncode}, expected {code}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def until(path: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until a run has logged so many steps and kept a checkpoint."""
    log = path / "log.jsonl"
    while not (log.exists() and log.read_text().count('"step"') > steps and any((path / "checkpoints").glob("step-*"))):
        if process.poll() is not None:
            raise RuntimeError(f"{path}: ended before it could be interrupted")
        time.sleep(0.002)


def killed(name: str) -> None:
    """A training of one process is killed on its way."""
    process = subprocess.Popen([sys.executable, "-m", "ccr_dist", "train", f"{name}.yaml"], env=environment())
    until(Path(f"runs/{name}-s0"), 12, process)
    process.kill()
    process.wait()


def stopped(name: str) -> None:
    """A training of two processes, under FSDP2, is asked to stop."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ccr_dist"]
    process = subprocess.Popen(
        [sys.executable, *words, "train", f"{name}.yaml", "--strategy", "fsdp2"], env=environment()
    )
    until(Path(f"runs/{name}-s0"), 12, process)
    stop = Path(f"runs/{name}-s0/stop")
    stop.touch()
    process.wait()
    stop.unlink()
    if Path(f"runs/{name}-s0/model.safetensors").exists():
        raise RuntimeError(f"{name}: complete before it could be stopped")


def config(
    name: str, method: Mapping[str, Any], stages: Mapping[str, Any], backbone: Mapping[str, Any], **runtime: Any
) -> None:
    """Writes NAME.yaml, the config of a run, with every path relative."""
    values = {
        "out": "runs",
        "backbone": dict(backbone),
        "method": dict(method),
        "data": {
            "train": [{"path": "data/train"}],
            "val": "data/val",
            "test": "data/test",
            "targets": {"es": "caption.es.toy"},
            "queries": {"en": "caption.en", "es": "caption.es"},
            "translated_queries": {"es": "caption.en.toy"},
            "group": "label.concept",
        },
        "stages": dict(stages),
        "runtime": {"workers": 0, "threads": 1, "log_every": 1, **runtime},
    }
    write(name, values)


def write(name: str, values: Mapping[str, Any]) -> None:
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **values}, sort_keys=False))


def datasets() -> None:
    """train, val, test: every kind of column but videos; photos: of a recipe, sealed."""
    for split in ("train", "val", "test"):
        toy.build(Path("data"), split, rows=ROWS, shard_rows=SHARD_ROWS)
        ccr(
            "featurise",
            f"data/{split}",
            "--config",
            "done.yaml",
            "--from",
            "image",
            "--column",
            "feature.clip",
            "--quiet",
        )
    keys = [key for shard in range(ROWS // SHARD_ROWS) for key in Dataset("data/train").keys(shard)]
    lines = [{"key": key, "value": [f"One sees {toy.ENGLISH[n]}.", "Nothing else."]} for n, key in enumerate(keys)]
    Path("descriptions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ccr("replay", "data/train", "descriptions.jsonl", "--column", "description.seen", "--source", "toy", "--quiet")
    Path("sources").mkdir()
    corpus.folder_recipe(Path("sources"), n=6)
    ccr("shards", "build", "sources/recipe.yaml", "--out", "data/photos")
    ccr("shards", "seal", "data/photos", "--quiet")


def half_a_job() -> None:
    """A worker is killed while it translates: one shard is done, a part of another is in a journal, under a lease."""
    at = toy.ENGLISH[SHARD_ROWS + 3]
    ccr(*JOB, "--set", f"at={at}", "--set", "what=KILL", code=-signal.SIGKILL, module="tests.golden.shouting")


def files(folder: Path) -> dict[str, str]:
    """{file: sha256} of what a repetition must reproduce of a column."""
    found = (path for path in sorted(folder.iterdir()) if not path.name.endswith((".stats.json", "column.json")))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def datasets_here() -> list[Path]:
    return sorted(path.parent for path in Path("data").rglob("dataset.json"))


def values(path: Path) -> dict[str, Any]:
    """What readers are given: the digest of the dataset, and of each column one over its values in their order."""
    dataset, columns = Dataset(path), {}
    for name in dataset.columns():
        column, found = dataset.column(name), hashlib.sha256()
        recorded = column.recorded()
        for shard, rows in enumerate(dataset.shard_rows):
            for row in range(rows if shard in recorded else 0):
                value = column.value(shard, row)
                plain = (
                    value.tolist() if column.kind == "matrix" else value.hex() if isinstance(value, bytes) else value
                )
                found.update(json.dumps(plain).encode())
        columns[name] = found.hexdigest()
    return {"digest": dataset.digest, "rows": dataset.rows, "columns": columns}


def losses(run: Path) -> dict[str, float]:
    """{step: loss}; a step that was made twice counts as it was made last."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {str(line["step"]): line["loss"] for line in lines if "loss" in line}


def make() -> None:
    """Everything, in the working directory."""
    backbone = clip(Path("models/clip"))
    embeddings = tiny.tiny_frontend_folder(Path("models/mbert"), toy.ALL_TEXTS, width=8)
    frontend = {"embeddings": embeddings, "rows": "used"}
    dasd = {"name": "dasd", "rank": 2, "frontend": frontend}
    short = {"cla": {"steps": 6, "validate_every": 3, **STAGE}, "cma": {"steps": 4, **STAGE}}
    long = {"cla": {"steps": 36, **STAGE}, "cma": {"steps": 4, **STAGE}}
    static = {"name": "static", "adapter": "none", "frontend": frontend}
    config("done", {**dasd, "use": "sr"}, short, backbone, checkpoint_every=2, cached_features=False)
    config("half", dasd, long, backbone, checkpoint_every=8, keep=1)
    config("parts", static, long, backbone, checkpoint_every=8, keep=1, checkpoint="sharded")
    config("zero", {"name": "clip"}, {}, backbone)
    datasets()
    ccr("train", "done.yaml", "--test")
    killed("half")
    stopped("parts")
    rows = [{"name": "zero", "config": "zero.yaml"}, {"name": "dasd", "config": "done.yaml"}]
    comparisons = [{"a": "dasd", "b": "zero", "claim": "DASD > zero-shot"}]
    write("study", {"title": "Study", "out": "study", "seeds": [0], "rows": rows, "comparisons": comparisons})
    ccr("study", "run", "study.yaml")
    ccr("study", "report", "study.yaml")
    texts = "featurise data/val --config zero.yaml --from caption.en --column feature.clip.caption.en --quiet"
    steps = {
        "texts": {"command": texts, "tasks": 2},
        "report": {"after": ["texts"], "command": "report runs/done-s0 --out report"},
    }
    write("pipeline", {"folder": "pipelines", "steps": steps})
    ccr("run", "pipeline.yaml")
    half_a_job()


def finish() -> dict[str, Any]:
    """Finishes in a copy what is half done; what each part has to show."""
    found: dict[str, Any] = {"datasets": {str(path): values(path) for path in datasets_here()}, "losses": {}}
    for run in ("half", "parts"):
        ccr("train", f"{run}.yaml", "runtime.checkpoint=whole")  # only FSDP2 writes sharded ones
        found["losses"][run] = losses(Path(f"runs/{run}-s0"))
    ccr(*JOB, "--lease-s", "1", module="tests.golden.shouting")
    found["job"] = files(Path("data/train/caption.xx"))
    return found


def anonymous(folder: Path, places: Sequence[str]) -> None:
    """Names of this machine become others in records that nobody reads back; RuntimeError where they are in others."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if (
            path.suffix in (".log", ".jsonl")
            or path.name in ("lock", "record.json")
            or path.name.endswith(".stats.json")
        ):
            for number, each in enumerate(places):
                data = data.replace(each.encode(), f"/place{number}".encode())
            path.write_bytes(data)
        if any(each.encode() in data for each in places):
            raise RuntimeError(f"{path} names a place of this machine")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("name")
    name = arguments.parse_args().name
    place = Path(tempfile.mkdtemp(prefix="golden-"))  # stays where something fails
    folder, copy = place / "set", place / "copy"
    folder.mkdir()
    os.chdir(folder)
    make()
    for trace in [*folder.rglob("tensorboard"), *folder.glob("study/**/*.png"), *folder.glob("study/**/*.html")]:
        shutil.rmtree(trace) if trace.is_dir() else trace.unlink()
    anonymous(folder, [str(folder.resolve()), str(ROOT), sys.prefix])
    keep(name, folder, copy)
    shutil.rmtree(place)


def nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uname, entry.gname, entry.uid, entry.gid = "user", "user", 1000, 1000
    return entry


def keep(name: str, folder: Path, copy: Path) -> None:
    """Packs the set with what its copy has to show once it is finished."""
    shutil.copytree(folder, copy)
    os.chdir(copy)
    found = {"version": __version__, "commit": commit(), "python": platform.python_version(), **finish()}
    (folder / "found.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "weights").mkdir()
    for run in ("half", "parts"):
        shutil.copy(f"runs/{run}-s0/model.safetensors", folder / "weights" / f"{run}.safetensors")
    with tarfile.open(HERE / f"{name}.tar.xz", "w:xz", preset=9) as tar:
        tar.add(folder, ".", filter=nobodys)
    os.chdir(HERE)


if __name__ == "__main__":
    main()
