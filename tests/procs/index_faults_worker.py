"""`shards index` (new, of tars that changed, of a damaged dataset), `seal` and `export` whose storage fails at every
file operation in turn; started with `faults.preloaded()`.

index_faults_worker.py FOLDER MOST      prints a line for every fault after which something is not as it should be, then
counts
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ccr_dist import cli
from ccr_dist.data.storage.file_ranges import forget_files
from ccr_dist.data.storage.tar import TarWriter
from tests.corpus import picture, tree
from tests.procs import faults
from tests.procs.build_faults_worker import wrong


def command(*arguments: object) -> int | None:
    sys.argv[1:] = ["shards", *map(str, arguments), "-q"]
    return cli.main()


def quietly(*arguments: object) -> None:
    with (
        contextlib.suppress(SystemExit),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        command(*arguments)
    forget_files()


def tars(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(2):
        with TarWriter(folder / f"{number}.tar") as tar:
            tar.add(f"k{number}.png", picture(number, size=2))
            tar.add(f"k{number}.txt", (text if number else "one").encode())
        os.utime(folder / f"{number}.tar", (1, 1 if number == 0 else len(text)))


def content(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if not name.endswith(".damaged")}


def jobs(root: Path) -> dict[str, tuple[Callable[[], None], tuple[object, ...]]]:
    """name -> (makes what is there before, the command)."""
    out, source = root / "out", root / "tars"
    index = ("index", source, "--out", out)

    def nothing() -> None:
        tars(source, "two")

    def of_old_tars() -> None:
        tars(source, "other")
        quietly(*index)
        tars(source, "two")

    def indexed() -> None:
        tars(source, "two")
        quietly(*index)

    def exported() -> None:
        indexed()
        out.rename(root / "data")

    def damaged() -> None:
        indexed()
        for name in ("image/000000.json", "caption.en/000001.index.json"):
            (out / name).write_bytes((out / name).read_bytes()[:-3])

    return {
        "index": (nothing, index),
        "index again": (of_old_tars, index),
        "seal": (indexed, ("seal", out)),
        "export": (exported, ("export", root / "data", "--out", out)),
        "index of a damaged dataset": (damaged, index),
    }


def main(root: Path, most: int | None) -> None:
    root.mkdir()
    out, tried, totals = root / "out", 0, {}
    for name, (before, arguments) in jobs(root).items():
        for place in (out, root / "data", root / "before"):
            shutil.rmtree(place, ignore_errors=True)
        before()
        out.mkdir(exist_ok=True)
        shutil.copytree(out, root / "before")

        def fresh() -> None:
            shutil.rmtree(out)
            shutil.copytree(root / "before", out)

        quietly(*arguments)  # here, so that the forks need not import anything
        expected, total = content(out), {}
        assert expected != content(root / "before"), name
        for kinds in (faults.CHANGES, faults.CHANGES | faults.READS):
            fresh()
            total[kinds] = faults.Faults(out, kinds).count(lambda arguments=arguments: command(*arguments))
            assert content(out) == expected, (name, sorted(set(content(out).items()) ^ set(expected.items())))
        for fault, error in faults.ERRORS.items():
            kinds = faults.CHANGES | (faults.READS if fault == "EIO" else 0)
            runs = faults.Faults(out, kinds)
            for lasting in (False, True) if fault in ("ENOSPC", "EROFS") else (False,):
                for at in faults.sample(total[kinds], most):
                    fresh()
                    outcome = runs.run(lambda arguments=arguments: command(*arguments), at, error, lasting=lasting)
                    left = [str(path) for path in out.rglob(".tmp-*")] * (
                        error > 0 and not (lasting and fault == "EROFS")
                    )
                    again = runs.run(lambda arguments=arguments: command(*arguments))
                    for path in out.rglob("*.damaged"):
                        path.unlink()
                    if said := wrong(outcome, again, error, left, out, expected):
                        print(f"{name}: {fault}{' lasting' * lasting} at {at} ({outcome.calls[-1:]}): {said}\n")
                    tried += 1
        totals[name] = [*total.values()]
    print("done", tried, "of", totals)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) or None)
