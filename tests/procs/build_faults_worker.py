"""`shards build` whose storage fails at every file operation in turn; started with `faults.preloaded()`.

build_faults_worker.py RECIPE FOLDER MOST      prints a line for every fault after which something is not as it should
be, then counts
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path

from ccr_dist import cli
from ccr_dist.data.storage import store
from tests.corpus import tree
from tests.procs import faults


def build(recipe: str, out: Path) -> int | None:
    sys.argv[1:] = ["shards", "build", "-q", recipe, "split_by=none", "--out", str(out)]
    return cli.main()


def wrong(
    outcome: faults.Outcome, again: faults.Outcome, error: int, left: list[str], out: Path, expected: dict[str, bytes]
) -> str | None:
    """What is not as promised about a failed build and the one after it."""
    if error in (faults.KILL_BEFORE, faults.KILL_AFTER):
        if outcome.code != -9:
            return f"expected a kill, exit code {outcome.code}: {outcome.said}"
    elif (
        outcome.code not in (0, 5)
        or "Traceback" in outcome.said
        or (outcome.code == 5 and str(out) not in outcome.said)
    ):
        return (
            f"expected exit code 5 and a sentence that names the place, or nothing at all: {outcome.code}:"
            f" {outcome.said}"
        )
    elif left and outcome.code == 5:
        return f"left behind: {left}"
    if again.code:
        return f"the same command again ends with {again.code}: {again.said}"
    if tree(out) != expected:
        return (
            "other files than those of an undisturbed build:"
            f" {sorted(set(tree(out).items()) ^ set(expected.items()))[:4]}"
        )
    rubbish = [str(path) for path in out.rglob(f"{store.TEMPORARY}*")]
    return f"rubbish stays: {rubbish}" if rubbish else None


def main(recipe: str, root: Path, most: int | None) -> None:
    root.mkdir()
    out = root / "out"
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        build(recipe, out)  # here, so that the forks need not import anything
    expected, total = tree(out), {}
    for kinds in (faults.CHANGES, faults.CHANGES | faults.READS):
        shutil.rmtree(out)
        total[kinds] = faults.Faults(out, kinds).count(lambda: build(recipe, out))
        assert tree(out) == expected
    tried = 0
    for name, error in faults.ERRORS.items():
        kinds = faults.CHANGES | (faults.READS if name == "EIO" else 0)
        runs = faults.Faults(out, kinds)
        for lasting in (False, True) if name in ("ENOSPC", "EROFS") else (False,):
            for at in faults.sample(total[kinds], most):
                shutil.rmtree(out, ignore_errors=True)
                outcome = runs.run(lambda: build(recipe, out), at, error, lasting=lasting)
                left = [str(path) for path in out.rglob(f"{store.TEMPORARY}*")] * (
                    error > 0 and not (lasting and name == "EROFS")
                )
                again = runs.run(lambda: build(recipe, out))
                if said := wrong(outcome, again, error, left, out, expected):
                    print(f"{name}{' lasting' * lasting} at {at} ({outcome.calls[-1:]}): {said}\n")
                tried += 1
    print("done", tried, "of", total)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) or None)
