"""Describes checkpoints for people and verifies them, from the headers of their files, without loading a tensor.

`checkpoint.py` writes and loads them; nothing is changed here.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccr_dist.config import RuntimeConfig
from ccr_dist.data.storage.checked import parse
from ccr_dist.data.storage.store import sha256_file
from ccr_dist.errors import CheckpointError, ConfigError, DataError
from ccr_dist.evaluate.schema import read_result
from ccr_dist.methods.run_config import from_dict
from ccr_dist.train.record.speed import groups_of
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.checkpoint_state import PARTS, folder_of, state_of
from ccr_dist.train.state.run_folder import RunFolder

Tensors = dict[str, dict[str, Any]]  # name: {"dtype", "shape", "bytes"}


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoint at a path, or all checkpoints of a run, oldest first.

    Raises:
        CheckpointError: The path is neither, or a run without checkpoints.
    """
    if (path / "state.json").exists() or re.fullmatch(r"step-\d+", path.name, re.ASCII):
        found = [path] if path.is_dir() else []
    else:
        found = [folder_of(path / "checkpoints", step) for step in checkpoint.steps(path / "checkpoints")]
    if not found:
        raise CheckpointError(
            f"{path}: no checkpoint and no run folder with one; expected RUN, or RUN/checkpoints/step-00000100"
        )
    return found


def inspect(path: Path) -> dict[str, Any]:
    """Describe one checkpoint: progress, what wrote it, layout, tensors, bytes, age in seconds.

    Raises:
        CheckpointError: Its state or the header of a file cannot be read.
    """
    values, _ = state_of(path)
    done = {"stage": "", **values["progress"]}
    parts = {part: tensors(path, part) for part in PARTS}
    kinds = sorted({name.rpartition("/")[2] for name in parts["optimizer"]})
    return {
        "path": str(path),
        "step": values["step"],
        **{key: done.get(key) for key in ("stage", "stage_step", "substituted", "skipped", "best")},
        "made_by": values.get("made_by"),
        "layout": "sharded" if any((path / part).is_dir() for part in PARTS) else "whole",
        "optimizer_states": kinds,
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "age_s": round(time.time() - (path / "state.json").stat().st_mtime),
        "tensors": parts,
    }


def inspect_run(run: Path) -> list[dict[str, Any]]:
    """`inspect` of each checkpoint, with the reasons why it is kept ("kept"); of a damaged one "path" and "problem"."""
    why, rows = _reasons(run), []
    for folder in checkpoints_of(run):
        try:
            row = inspect(folder)
            rows.append({**row, "kept": why[row["step"]]})
        except CheckpointError as error:
            rows.append({"path": str(folder), "problem": str(error)})
    return rows


def tensors(path: Path, part: str) -> Tensors:
    """The tensors in one part of a checkpoint, in either layout.

    Args:
        path: The checkpoint.
        part: "weights", "optimizer" or "auxiliary".

    Returns:
        {"dtype", "shape", "bytes"} by name; of sharded tensors, the shape of the whole.

    Raises:
        CheckpointError: A file is missing or its header damaged.
    """
    found: Tensors = {}
    for file in (
        [path / f"{part}.safetensors"] if not (path / part).is_dir() else sorted((path / part).glob("*.safetensors"))
    ):
        try:
            _add(found, _header(file))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{file}: damaged, its header is none of a safetensors file ({error!r})") from None
    return dict(sorted(found.items()))


def _add(found: Tensors, header: dict[str, Any]) -> None:
    offsets = parse(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
    for name, entry in header.items():
        begin = offsets.get(name, {}).get("saved_offsets", [0] * len(entry["shape"]))
        end = [first + length for first, length in zip(begin, entry["shape"], strict=True)]
        known = found.setdefault(name, {"dtype": entry["dtype"], "shape": end, "bytes": 0})
        known["shape"] = [max(pair) for pair in zip(known["shape"], end, strict=True)]
        known["bytes"] += entry["data_offsets"][1] - entry["data_offsets"][0]


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            return parse(opened.read(min(length, file.stat().st_size)))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise CheckpointError(f"{file}: no safetensors file: {error}") from None


def groups(found: Tensors) -> list[dict[str, Any]]:
    """Sums of a part's tensors by module: {"module", "tensors", "numbers", "bytes", "dtypes"}."""
    return [
        {
            "module": module,
            "tensors": len(names),
            "numbers": sum(math.prod(found[name]["shape"]) for name in names),
            "bytes": sum(found[name]["bytes"] for name in names),
            "dtypes": sorted({found[name]["dtype"] for name in names}),
        }
        for module, names in groups_of(list(found), most=16).items()
    ]


def _reasons(run: Path) -> dict[int, list[str]]:
    """The reasons why each of a run's checkpoints is kept, by step."""
    steps, best = checkpoint.steps(run / "checkpoints"), None
    with contextlib.suppress(CheckpointError):
        best = RunFolder(run).best()
    keep = RuntimeConfig().keep
    with contextlib.suppress(CheckpointError, ConfigError):  # `verify` reports it
        values, _ = RunFolder(run).config()
        keep = from_dict(values, name=str(run / "config.yaml")).runtime.keep if values is not None else keep
    found: dict[int, list[str]] = {step: [] for step in steps}
    for step in steps[-keep:]:
        found[step].append("newest: a resume starts here" if step == steps[-1] else f"among the newest {keep}")
    if best and best["step"] in found:
        found[best["step"]].append(f"best, {best['metric']} {best['value']:.2f}")
    return found


def verify(path: Path) -> Iterator[tuple[Path, str | None, bool]]:
    """Verify a checkpoint, or a run's checkpoints, records, weights and results.

    Args:
        path: A checkpoint or a run.

    Yields:
        Path of a file or checkpoint; what is wrong with it, or None; whether it carries a digest.

    Raises:
        CheckpointError: There is no checkpoint.
        OSError: Storage fails.
    """
    found = checkpoints_of(path)
    for folder in found:
        wrong = checkpoint.problem(folder)
        yield folder, wrong, wrong is not None or state_of(folder)[1]
    if found == [path]:
        return
    for name, wrong, sealed in RunFolder(path).audit():
        yield path / name, wrong, sealed
    for file in sorted((path / "results").glob("*.json")):
        try:
            result = read_result(file)
            ranks = file.with_name(f"{file.stem}.ranks.npz")
            known = result.meta.get("ranks")
            wrong = (
                f"{ranks.name} is not what it records"
                if known and ranks.exists() and sha256_file(ranks) != known
                else None
            )
            yield file, wrong, "digest" in result.meta
        except DataError as error:
            yield file, str(error).removeprefix(f"{file}: "), True


def missing_best(run: Path) -> str | None:
    """A line if the selected checkpoint of a run is missing; otherwise None."""
    try:
        best = RunFolder(run).best()
    except CheckpointError:
        return None  # `verify` reports it
    if best is None or folder_of(run / "checkpoints", best["step"]).is_dir():
        return None
    return f"best.json selects step {best['step']}, which has no checkpoint"
