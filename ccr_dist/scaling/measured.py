"""What one training of a point has measured, read from its run folder.

Steps are those that every start has taken after its first `warmup` ones. A step takes as long as it takes the rank that
is slowest.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.storage.json_lines import read_lines
from ccr_dist.data.storage.store import check_object, read_json
from ccr_dist.errors import DataError
from ccr_dist.scaling.traffic import traffic

PHASES = ("data", "agree", "forward", "losses", "backward", "update")
_SPEED = {f"{name}_s" for name in PHASES} | {"longest_s", "sent_bytes"}


def measured(run: Path, *, warmup: int) -> dict[str, Any]:
    """The measurements of a run that is complete.

    Args:
        run: Its folder.
        warmup: Steps after each start, and at the beginning of each stage, that are not measured.

    Returns:
        "stages": by name, as `_stage` makes them; "environment": of the newest start: commit, versions, hardware,
        hosts, facts of the processes; "quality": metric and value of the best validation, and "test", the mean
        recalls where the test split was measured.

    Raises:
        DataError: The log is damaged, or lacks what is to be measured.
    """
    starts = _lines(run / "starts.jsonl", {"processes": list, "world": int, "step": int})
    if not starts:
        raise DataError(f"{run / 'starts.jsonl'}: holds no start of the run; measure the point again")
    lines = _lines(run / "log.jsonl", {"step": int})
    first = {start["step"] for start in starts}
    stages: dict[str, list[dict[str, Any]]] = {}
    events: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        if "event" not in line:
            stages.setdefault(line["stage"], []).append(line)
        elif "stage" in line:
            events[line["event"], line["stage"]] = line
    found = {
        name: _stage(run, name, steps, events, _cold(first, steps, warmup), world=starts[-1]["world"])
        for name, steps in stages.items()
    }
    if not found:
        raise DataError(f"{run / 'log.jsonl'}: holds no step; measure the point again")
    start = starts[-1]
    keys = ("versions", "hardware", "commit", "device", "cores", "threads", "strategy", "precision", "world")
    about = {key: start[key] for key in keys if key in start}
    about["hosts"] = sorted({process["host"] for process in start["processes"]})
    return {"stages": found, "environment": about, "quality": _quality(run), "starts": len(starts)}


def _lines(path: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    lines = read_lines(path).require(path, "measure the point again")
    for number, line in enumerate(lines, 1):
        check_object({key: line[key] for key in fields if key in line}, fields, f"{path}, entry {number}")
    return lines


def _cold(starts: set[int], steps: Sequence[Mapping[str, Any]], warmup: int) -> set[int]:
    """The steps that are not measured."""
    begins = {*starts, steps[0]["step"] - 1}
    return {begin + n for begin in begins for n in range(1, warmup + 1)}


def _stage(
    run: Path, name: str, steps: Sequence[Mapping[str, Any]], events: Mapping[tuple[str, str], Mapping[str, Any]],
    cold: set[int], *, world: int,
) -> dict[str, Any]:  # fmt: skip
    """Seconds of each measured step, medians of the rest."""
    kept = [line for line in steps if line["step"] not in cold]
    if len(kept) < 2:
        raise DataError(
            f"{run / 'log.jsonl'}: {len(kept)} measured step(s) of stage {name}, of {len(steps)} in it; at least two"
            " are needed: measure more steps, or leave out fewer of them by `warmup`"
        )
    for line in kept:
        if missing := _SPEED - line.get("speed", {}).keys():
            raise DataError(
                f"{run / 'log.jsonl'}, step {line['step']}: lacks {', '.join(sorted(missing))}; such a run is measured"
                " with runtime.log_every=1 and this version"
            )

    def middle(key: str) -> float:
        return statistics.median(line["speed"][key] for line in kept)

    held, most = events.get(("held", name)), events.get(("memory", name))
    if held is None or most is None or "regathered" not in held:
        raise DataError(f"{run / 'log.jsonl'}: does not say what ranks of stage {name} hold; measure the point again")
    optional = {key: middle(key) for key in ("tokens_per_s", "mfu") if all(key in line["speed"] for line in kept)}
    return {
        "first_step": kept[0]["step"],
        "last_step": kept[-1]["step"],
        "seconds": [line["speed"]["longest_s"] for line in kept],
        "phases": {phase: middle(f"{phase}_s") for phase in PHASES},
        "memory_bytes": most["bytes"],
        "held_bytes": held["bytes"],
        "traffic": traffic(held["strategy"], held["bytes"], world, middle("sent_bytes"), regathered=held["regathered"]),
        **optional,
    }


def _quality(run: Path) -> dict[str, Any]:
    best = run / "best.json"
    found: dict[str, Any] = {}
    if best.exists():
        values = read_checked(best)[0]
        found = {"metric": values["metric"], "value": values["value"], "step": values["step"]}
    result = run / "results" / "test.json"
    if result.exists():
        languages = read_json(result)["languages"]
        found["test"] = {lang: each["metrics"]["SumR"] for lang, each in languages.items()}
    return found
