"""States saved under every strategy in worlds of 1, 2 and 4, resumed under the others: all in one start.

    python -m tests.procs.resume_matrix            the pairs that the tests look at, and runs that are really killed
    python -m tests.procs.resume_matrix --all      all 225 pairs
    ... --save                                     kept in tests/benchmarks/results/resume_matrix.json

Prints JSON; ends with an error when something does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")  # ddp in a world of one process is that process alone
WORLDS = (1, 2, 4)
NEAR = {"fp32": 1e-4, "bf16": 0.03}  # of losses, relative


class Place(NamedTuple):
    strategy: str
    world: int

    def __str__(self) -> str:
        return f"{self.strategy}-{self.world}"


class Case(NamedTuple):
    saved: Place
    resumed: Place
    killed: bool = False  # by SIGKILL; otherwise a copy of a whole run goes on from one of its checkpoints

    def __str__(self) -> str:
        return f"{self.saved} > {self.resumed}{' (killed)' * self.killed}"


PLACES = [Place(strategy, world) for world in WORLDS for strategy in STRATEGIES]
ALONE = PLACES[0]
KILLED = [Case(Place(name, 2), Place(name, 2), killed=True) for name in ("zero2", "zero3", "fsdp2")]


def precision(saved: Place) -> str:
    """One state of each strategy is that of bf16 autocast and of another optimiser."""
    return "bf16" if PLACES.index(saved) % 3 == 1 else "fp32"


def chosen() -> list[Case]:
    """Every place to itself (some killed), every ordered pair of strategies, every ordered pair of worlds."""
    worlds = itertools.cycle(itertools.product(WORLDS, repeat=2))
    others = [
        Case(Place(a, w), Place(b, v))
        for (a, b), (w, v) in zip(itertools.permutations(STRATEGIES, 2), worlds, strict=False)
    ]
    elastic = [Case(Place(name, WORLDS[i % 3]), Place(name, WORLDS[(i + 1) % 3])) for i, name in enumerate(STRATEGIES)]
    return [
        *(Case(place, place) for place in PLACES if place not in {case.saved for case in KILLED}),
        *others,
        *elastic,
        *KILLED,
    ]


def every() -> list[Case]:
    return [*(Case(*pair) for pair in itertools.product(PLACES, repeat=2)), *KILLED]


def holds(case: Case, found: dict[str, Any]) -> bool:
    """The same batches, every tensor carried over bit for bit, near losses; in the place where it was saved, the same
    bits in the end.
    """
    carried = found["resumed_at"] == 4 and found["carried"] > 50 and not found["lost"]
    return (
        carried
        and found["batches"]
        and found["losses"] < NEAR[found["precision"]]
        and (found["bits"] or case.saved != case.resumed)
    )


def run(folder: Path, cases: list[Case]) -> dict[str, dict[str, Any]]:
    """ "trained": place -> the uninterrupted run beside that of one process; "resumed": case -> what was found."""
    from tests.procs import forked, resume_worker

    forked.prepare()
    forked.world(1, resume_worker.prepare, folder)
    saved = sorted({ALONE, *(case.saved for case in cases)}, key=PLACES.index)
    for world in sorted({place.world for place in saved}):
        states = [(str(place), place.strategy, precision(place)) for place in saved if place.world == world]
        forked.world(world, resume_worker.train, folder, states, timeout=3000)
    names = {case: f"case{number}" for number, case in enumerate(cases)}
    for case in cases:
        if case.killed:
            with contextlib.suppress(RuntimeError):
                forked.world(
                    case.saved.world, resume_worker.die, folder, names[case], case.saved.strategy, precision(case.saved)
                )
    found: dict[str, Any] = {}
    for world in sorted({case.resumed.world for case in cases}):
        jobs = [
            (str(c.saved), names[c], c.resumed.strategy, precision(c.saved)) for c in cases if c.resumed.world == world
        ]
        forked.world(world, resume_worker.resume, folder, jobs, folder / "found.json", timeout=3000)
        found |= json.loads((folder / "found.json").read_text())
    runs = {place: folder / "runs" / f"{place}-s0" for place in saved}
    alone = runs[ALONE]
    trained = {
        str(place): {
            "losses": resume_worker.distance(resume_worker.losses(alone), resume_worker.losses(path)),
            "validations": [resume_worker.validations(each) for each in (alone, path)],
        }
        for place, path in runs.items()
        if precision(place) == precision(ALONE)
    }
    resumed = {case: {"precision": precision(case.saved), **found[name]} for case, name in names.items()}
    return {
        "trained": trained,
        "resumed": {str(case): {**each, "holds": holds(case, each)} for case, each in resumed.items()},
    }


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--all", action="store_true")
    arguments.add_argument("--save", action="store_true")
    arguments.add_argument("--out", type=Path, help="write what was found to this file, too")
    asked = arguments.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), every() if asked.all else chosen())
    if asked.out:
        asked.out.write_text(json.dumps(found))
    from tests.benchmarks import record

    failed = [name for name, case in found["resumed"].items() if not case["holds"]]
    summary = {"cases": len(found["resumed"]), "failed": failed, "seconds": round(time.monotonic() - begun, 1)}
    record.record("resume_matrix", {**summary, **found}, save=asked.save)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
