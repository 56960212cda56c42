"""Commands whose storage fails at every operation that reads, in turn; started with `faults.preloaded()` by
test_read_faults.py.

    python -m tests.procs.read_faults_worker FOLDER MOST SCENE ...

Prints a line for every fault after which something is not as it should be, then counts. Everything that a command reads
lies below FOLDER: sources, datasets, weights, configs, and what it has written itself.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ccr_dist import cli
from ccr_dist.data.storage.file_ranges import forget_files
from tests import corpus, jobs, toy
from tests.procs import faults, forked, index_faults_worker

# name -> error, whether all later reads fail too
FAULTS = {"EIO": (errno.EIO, False), "EIO lasting": (errno.EIO, True), "short": (faults.SHORT, False)}
READING = faults.READS | faults.LOOKS
DIFFERS = (".stats.json", ".jsonl", "lock")  # with the clock, or with the number of starts
# a file that is being written is named by its final name
TEMPORARY = re.compile(r"\.tmp-([^/]+)\.[^./]+\.\d+\.[0-9a-f]{8}$")
MODEL = re.compile(r"/d/(mbert|clip)(/|$)")
STARTS = ("meta", "test_reads")  # of a result: of this start


class Scene(NamedTuple):
    """prepare: makes all that lies there before. words: the command. made: the folder, below the scene's, of what it
    makes; None: it only looks, and what it says is compared. trains: it needs torch.
    """

    prepare: Callable[[Path], None]
    words: Callable[[Path], list[str]]
    made: str | None
    trains: bool = False


def run(words: list[str]) -> int | None:
    sys.argv = ["ccr-dist", *words]
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0


def quietly(*words: object) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        assert not run([*map(str, words)]), words
    forget_files()


def tars(root: Path) -> None:
    index_faults_worker.tars(root / "tars", "two")


def indexed(root: Path) -> None:
    tars(root)
    quietly("shards", "index", root / "tars", "--out", root / "data", "-q")


def recipe(root: Path) -> None:
    corpus.folder_recipe(root / "in", n=2)


def captions(root: Path) -> None:
    jobs.captions(root / "data", rows=(3, 2, 1))


def run_config(root: Path) -> None:
    runtime = {"workers": 0, "threads": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1}
    toy.dasd(root, cla=2, cma=1, runtime=runtime).rename(root / "run.yaml")


def half_trained(root: Path) -> None:
    """A run that goes on from a checkpoint."""
    trained(root)
    shutil.rmtree(root / "runs" / "dasd-s0" / "checkpoints" / "step-00000003")
    (root / "runs" / "dasd-s0" / "model.safetensors").unlink()


def trained(root: Path) -> None:
    run_config(root)
    quietly("train", root / "run.yaml", *LIGHT)


LIGHT = ("method.frontend.start=scaled", "method.adversarial=0.0")
SCENES = {
    "build": Scene(
        recipe,
        lambda root: ["shards", "build", "-q", f"{root}/in/recipe.yaml", "split_by=none", "--out", f"{root}/out"],
        "out",
    ),
    "index": Scene(tars, lambda root: ["shards", "index", f"{root}/tars", "--out", f"{root}/out", "-q"], "out"),
    "seal": Scene(indexed, lambda root: ["shards", "seal", f"{root}/data", "-q"], "data"),
    "export": Scene(indexed, lambda root: ["shards", "export", f"{root}/data", "--out", f"{root}/out", "-q"], "out"),
    "verify": Scene(indexed, lambda root: ["shards", "verify", f"{root}/data", "-q"], None),
    "translate": Scene(
        captions,
        lambda root: jobs.shouting(root / "data", "--batch", "2", "--quiet"),
        "data",
    ),
    "train": Scene(run_config, lambda root: ["train", f"{root}/run.yaml", *LIGHT], "runs", True),
    "resume": Scene(half_trained, lambda root: ["train", f"{root}/run.yaml", *LIGHT], "runs", True),
    "evaluate": Scene(trained, lambda root: ["evaluate", f"{root}/run.yaml", *LIGHT], "runs", True),
    "checkpoint verify": Scene(trained, lambda root: ["checkpoint", "verify", f"{root}/runs/dasd-s0"], None, True),
}


def content(folder: Path) -> dict[str, bytes]:
    """What equal commands make equal."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(DIFFERS)}
    for name in (name for name in found if "results/" in name and name.endswith(".json")):
        values = json.loads(found[name])
        found[name] = json.dumps({key: value for key, value in values.items() if key not in STARTS}).encode()
    return found


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def wrong(scene: Scene, root: Path, before: Path, most: int | None, counts: list[int]) -> Iterator[str]:
    words, storage = scene.words(root), faults.Faults(root, READING)

    def action() -> int | None:
        return run(words)

    def there() -> dict[str, bytes]:
        return content(root / scene.made) if scene.made else {}

    restore(root, before)
    calm = storage.run(action)
    assert calm.code == 0, calm.said
    expected = there()
    assert not scene.made or expected
    restore(root, before)
    again = storage.run(action)
    assert again.code == 0 and there() == expected, f"two undisturbed commands differ: {differing(there(), expected)}"
    for name, (error, lasting) in FAULTS.items():
        for at in places(scene, calm.calls, error, lasting, most):
            restore(root, before)
            broken = storage.run(action, at, error, lasting=lasting)
            counts.append(broken.code)
            if len(broken.calls) < at:  # a heartbeat more or less depends on the clock
                continue
            where = f"{name} at {broken.calls[at - 1]} of {len(calm.calls)}"
            struck = TEMPORARY.sub(r"\1", broken.calls[at - 1].split(" ", 2)[2])
            if model := MODEL.search(struck):  # libraries wrap what they read it with: the folder is what was asked for
                struck = struck[: model.end(1)]
            if problem := of_one(
                broken, error, calm.said if scene.made is None else None, str(root) if lasting else struck
            ):
                yield f"{where}: {problem}"
            if broken.code == 0 and (other := differing(there(), expected)):
                yield f"{where}: ends with 0 and other files: {other[:4]}: {broken.said}"
            if rubbish := [
                str(path) for path in root.rglob("*") if path.name.startswith(".tmp-") or path.name.endswith(".damaged")
            ]:
                yield f"{where}: left behind: {rubbish}"
            if broken.code == 0 or scene.made is None:
                continue
            whole = storage.run(action)
            if whole.code:
                yield f"{where}: the same command again ends with {whole.code}: {whole.said}"
            elif other := differing(there(), expected):
                yield f"{where}: after repeating these are others: {other[:4]}"


def places(scene: Scene, calls: list[str], error: int, lasting: bool, most: int | None) -> list[int]:
    """Which operations fail: those that read; of those that only look, and of all where it trains (a start is long),
    the first and the last of each kind at each path.

    Not one look alone at a file of a model: libraries take it for missing then, and nobody can tell.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    for at, call in enumerate(calls, 1):
        _, kind, path = call.split(" ", 2)
        looks = kind in ("stat", "list")
        of_a_model = looks and MODEL.search(path)
        if kind == "read" if error == faults.SHORT else lasting or not of_a_model:
            found.setdefault((kind, path) if looks or scene.trains else (call,), []).append(at)
    chosen = sorted({at for ats in found.values() for at in (ats[0], ats[-1])})
    return [chosen[place - 1] for place in faults.sample(len(chosen), most)]


def of_one(broken: faults.Outcome, error: int, said: str | None, place: str) -> str | None:
    """What is wrong with how a disturbed command ended. said: what it has to say; place: what its sentence has to
    name.
    """
    if broken.code not in ((0,) if error == faults.SHORT else (0, 5)) or "Traceback" in broken.said:
        return f"exit code {broken.code}: {broken.said}"
    if broken.code == 0:
        return f"it says something else: {broken.said}" if said is not None and broken.said != said else None
    told = [line for line in broken.said.splitlines() if line.startswith("error: ")]
    return None if len(told) == 1 and place in broken.said else f"no sentence that names a file: {broken.said}"


def restore(root: Path, before: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(before, root, symlinks=True)


def main(name: str, folder: Path, most: int | None) -> None:
    root, scene, codes = folder / "d", SCENES[name], list[int]()
    root.mkdir(parents=True)
    if scene.trains:
        forked.prepare()
        importlib.import_module("ccr_dist.train.commands")
    scene.prepare(root)
    shutil.copytree(root, folder / "before", symlinks=True)
    quietly(*scene.words(root))  # here, so that the forks need not import anything
    for problem in wrong(scene, root, folder / "before", most, codes):
        print(f"{name}: {problem}\n", flush=True)
    print("done", name, len(codes), "exit codes", {code: codes.count(code) for code in sorted(set(codes))}, flush=True)


if __name__ == "__main__":
    place, tried, *scenes = sys.argv[1:]  # commands get theirs in the same place
    os.environ["TMPDIR"] = place
    for one in scenes:
        main(one, Path(place) / one.replace(" ", "-"), int(tried) or None)
