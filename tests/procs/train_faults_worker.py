"""The process of test_train_faults.py: a small run again and again, each in a fork of this process, with storage that
fails somewhere.

    python -m tests.procs.train_faults_worker FOLDER MOST PART PARTS     FOLDER/found-PART.json; MOST "all" or the
    places tried a fault

A run is begun, disturbed at one of its file operations, and repeated by the same command.
"""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path

from ccr_dist import cli
from tests import toy
from tests.procs import faults, forked

LEFT = (".tmp-*", ".step-*", "*.tmp", ".tmp*", ".model.*")


def prepare(folder: Path) -> None:
    """What a start matters for: a projection that does not begin at random, and two stages of which the second begins
    from the best.
    """
    path = toy.dasd(
        folder, cla=2, cma=2, runtime={"workers": 0, "threads": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1}
    )
    shutil.copy(path, folder / "run.yaml")


def train(folder: Path) -> int:
    sys.argv = ["ccr-dist", "train", str(folder / "run.yaml"), "method.frontend.start=scaled", "method.adversarial=0.0"]
    cli.main()
    return 0


def scenes(folder: Path, most: int | None, part: int, parts: int) -> None:
    out = folder / f"runs-{part}"
    config = (folder / "run.yaml").read_text().replace(str(folder / "runs"), str(out))
    mine = folder / f"part-{part}"
    mine.mkdir()
    (mine / "run.yaml").write_text(config)
    out.mkdir()
    run, found = out / "dasd-s0", []
    storage = faults.Faults(out)

    def action() -> int:
        return train(mine)

    total = storage.count(action)
    calm = (run / "model.safetensors").read_bytes()
    files = names(run)
    cases = [(name, at) for name in faults.ERRORS for at in faults.sample(total, most)]
    for name, at in itertools.islice(cases, part, None, parts):
        shutil.rmtree(run, ignore_errors=True)
        broken = storage.run(action, at, faults.ERRORS[name], lasting=name in ("ENOSPC", "EROFS"))
        whole = storage.run(action)
        model = run / "model.safetensors"
        outcome = {"fault": name, "at": at, "of": total, "code": broken.code, "said": broken.said[-3000:]}
        outcome |= {
            "again": whole.code,
            "told": whole.said[-3000:],
            "same": model.is_file() and model.read_bytes() == calm,
        }
        left = [str(path.relative_to(run)) for pattern in LEFT for path in run.rglob(pattern)]
        found.append({**outcome, "left": left, "files": sorted(set(files) ^ set(names(run)))})
        (folder / f"found-{part}.json").write_text(json.dumps(found))
    (folder / f"modes-{part}.json").write_text(json.dumps(modes(run)))


def names(run: Path) -> list[str]:
    """All files but those that differ from start to start."""
    return sorted(
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tensorboard" not in str(path)
    )


def modes(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run)): oct(path.stat().st_mode & 0o777) for path in run.rglob("*")}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if sys.argv[2] == "prepare":
        prepare(root)
    else:
        forked.prepare()
        importlib.import_module("ccr_dist.train.commands")
        tried = None if sys.argv[2] == "all" else int(sys.argv[2])
        scenes(root, tried, int(sys.argv[3]), int(sys.argv[4]))
