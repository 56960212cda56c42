"""Called by the batch script of a step before and after its command (slurm/job.sh): python -m ccr_dist.cluster.job
begin|end ... -- COMMAND.

`begin` records the start of an attempt. `end` collects how it ended (exit codes of all processes, progress since the
start, SLURM's report on the job, the node at fault), asks `decide.py`, and carries out the decision.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist import errors
from ccr_dist.cluster import attempts, identity, ledger, slurm
from ccr_dist.cluster.decide import NODE, Decision, Ended, decide
from ccr_dist.cluster.progress import Progress, progress
from ccr_dist.commands import uses_of
from ccr_dist.data.storage.checked import read_checked
from ccr_dist.data.storage.store import read_json
from ccr_dist.declare import Uses

RETRIES = 3  # without a profile
HANG = re.compile(r"rank \d+ \(pid \d+ on (?P<host>[^)\s]+)\): step \d+, (?P<phase>[^,]+),")


@dataclass(frozen=True)
class Here:
    """This attempt.

    Attributes:
        run: The pipeline's run folder.
        step: Name of the step.
        task: Number of the task.
        tasks: Tasks of the step in all.
        name: JOB.RESTART.
        retries: Strikes that are allowed.
        notes: Folder in which its processes leave notes.
    """

    run: Path
    step: str
    task: int
    tasks: int
    name: str
    retries: int
    notes: Path

    @classmethod
    def from_environment(cls) -> Here:
        """The attempt in the environment that slurm/job.sh makes."""
        get = os.environ.__getitem__
        run, step = Path(get("CCR_RUN")), get("CCR_STEP")
        tasks = int(os.environ.get("CCR_TASKS", "1"))
        return cls(
            run, step, int(get("CCR_TASK")), tasks, get("CCR_ATTEMPT"), int(get("CCR_RETRIES")), Path(get("CCR_NOTES"))
        )

    @property
    def restart(self) -> int:
        """How often the job was restarted."""
        return int(self.name.partition(".")[2])

    @property
    def path(self) -> Path:
        """The file of the task's attempts."""
        return attempts.path_of(self.run, self.step, self.task)

    def uses(self, command: Sequence[str]) -> Uses:
        """What the command reads and makes."""
        return uses_of(command, f"step {self.step}")

    def progress(self, uses: Uses) -> Progress:
        """The progress of this task's share."""
        return progress(uses, (self.task, self.tasks))

    def earlier(self) -> list[attempts.Attempt]:
        """Earlier attempts of the same job."""
        job = self.name.partition(".")[0]
        return [attempt for attempt in attempts.read(self.path) if attempt.job == job and attempt.name != self.name]


def begin(here: Here, command: Sequence[str], *, nodes: Sequence[str], job: str | None) -> Decision | None:
    """Record the start of an attempt.

    Args:
        here: The attempt.
        command: Words of its command.
        nodes: Its nodes.
        job: Id of its SLURM job; None without SLURM.

    Returns:
        None if the command may start; otherwise the decision, because too many attempts were killed or the attempt is
        on a node that it must avoid.
    """
    uses = here.uses(command)
    now, earlier = here.progress(uses), here.earlier()
    strikes = attempts.strikes(earlier, now)
    start: dict[str, Any] = {"event": "start", "attempt": here.name, "nodes": list(nodes), "command": list(command)}
    if (here.run / "pipeline.yaml").exists():  # else a script was submitted by hand
        start["identity"] = identity.of_attempt(ledger.recorded(here.run)[0], here.step)
    attempts.write(here.path, {**start, "progress": now.to_json()})
    avoid = sorted(attempts.excluded(earlier) & set(nodes))
    if avoid and job is not None:
        return _close(
            here, Ended(NODE, blamed=frozenset(avoid), strikes=strikes, retries=here.retries), now, job=job, extra={}
        )
    if strikes > here.retries:
        return _close(here, Ended(errors.CRASH, strikes=strikes, retries=here.retries), now, job=None, extra={})
    return None


def end(here: Here, command: Sequence[str], *, code: int, heard: str, job: str | None) -> Decision:
    """Record the end of an attempt, decide what happens to the job, and carry it out.

    Args:
        here: The attempt.
        command: Words of its command.
        code: Exit code of the launcher.
        heard: Name of the signal that the batch script received, or "".
        job: Id of its SLURM job; None without SLURM.
    """
    uses = here.uses(command)
    earlier = here.earlier()
    [this] = [attempt for attempt in attempts.read(here.path) if attempt.name == here.name]
    now, began = here.progress(uses), float(this.start["time"])
    code = combined(code, here.notes)
    hangs = stuck(uses.runs, began)
    if hangs and code == errors.CRASH:
        code = errors.HangError.exit_code
    state = slurm.job(job) if job is not None else None
    nodes = frozenset(this.start["nodes"])
    blamed = bad_nodes(here.notes, nodes) if code == NODE else blame(hangs, nodes)
    ended = Ended(
        code,
        taken=state is not None
        and (state.restarts != here.restart or (state.state != "RUNNING" and not state.timed_out)),
        preempted=state is not None and state.preempted,
        warned=bool(heard) or (state is not None and state.timed_out),
        held=(here.run / "stop").exists(),
        progressed=now.beyond(Progress.from_json(this.start["progress"])),
        strikes=attempts.strikes(earlier, Progress.from_json(this.start["progress"])),
        retries=here.retries,
        blamed=blamed,
        all_blamed=len(nodes) > 1 and blamed >= nodes,
        nonfinite_before=any(a.end is not None and a.end["code"] == errors.NonFiniteError.exit_code for a in earlier),
    )
    extra: dict[str, Any] = {"heard": heard or None, **saved(here.notes, uses.runs)}
    if code == NODE:
        records = map(read_json, sorted(here.notes.glob("node-*.json")))
        extra["problems"] = {record["node"]: record["problems"] for record in records if record["problems"]}
        for node, problems in extra["problems"].items():
            print(f"preflight: {node}: {'; '.join(problems)}", file=sys.stderr)
    return _close(here, ended, now, job=job, extra=extra, state=state, uses=uses)


def _close(
    here: Here,
    ended: Ended,
    now: Progress,
    *,
    job: str | None,
    extra: dict[str, Any],
    state: slurm.SlurmJob | None = None,
    uses: Uses | None = None,
) -> Decision:
    decision = decide(ended)
    back = [str(path) for path in step_back(uses.runs)] if decision.back and uses else []
    attempts.write(
        here.path,
        {
            "event": "end", "attempt": here.name, "code": ended.code, "decision": decision.action, "why": decision.why,
            "counted": decision.counted, "progressed": ended.progressed, "exclude": sorted(decision.exclude),
            "progress": now.to_json(),
            **({"set_aside": back} if back else {}), **extra,
        },
    )  # fmt: skip
    why = decision.why + (f"; saved {extra['saved_s']} s after the signal" if "saved_s" in extra else "")
    print(
        f"attempt {here.name} of {here.step}: exit code {ended.code}: {why}: {outcome(decision)}",
        file=sys.stderr,
        flush=True,
    )
    shutil.rmtree(here.notes, ignore_errors=True)
    if decision.action == "again" and job is not None:
        slurm.requeue(job, sorted(decision.exclude), state.excluded if state else slurm.job(job).excluded)
    return decision


def outcome(decision: Decision) -> str:
    """A decision in words."""
    what = {"done": "done", "again": "runs again", "fail": "given up", "leave": "left to SLURM"}[decision.action]
    return what + (f", without {', '.join(sorted(decision.exclude))}" if decision.exclude else "")


def _code(path: Path) -> int:
    """The exit code that a rank left. One that was killed while it wrote has crashed."""
    try:
        code = read_json(path)["code"]
    except (errors.DataError, KeyError, TypeError):
        return errors.CRASH
    return code if isinstance(code, int) else errors.CRASH


def combined(code: int, notes: Path) -> int:
    """The most specific exit code: a launcher's own says only success or failure, those of its ranks are in the notes.

    Args:
        code: The launcher's exit code.
        notes: The attempt's folder of notes.
    """
    codes = set(map(_code, notes.glob("rank-*.json")))
    if code == errors.DONE:
        return errors.STOPPED if errors.STOPPED in codes else code  # see rank.py
    special = codes - {errors.DONE, errors.CRASH, errors.STOPPED}
    # no rank started; when the first node finds a problem, srun kills the others, whose code is higher
    if not codes:
        return NODE if any(read_json(path)["problems"] for path in notes.glob("node-*.json")) else code
    if code == NODE:
        return code
    if special:
        return min(special)
    return errors.STOPPED if errors.STOPPED in codes else errors.CRASH


def stuck(runs: Sequence[Path], since: float) -> dict[str, str]:
    """Phase of the step in which ranks hung, by host, for ranks that the watchdog ended since the unix time `since`."""
    found = {}
    for path in (path for run in runs for path in (run / "hang").glob("rank-*.txt")):
        if path.stat().st_mtime >= since and (match := HANG.search(path.read_text(encoding="utf-8", errors="replace"))):
            found[match["host"].partition(".")[0]] = match["phase"]  # SLURM names nodes without their domain
    return found


def blame(hangs: dict[str, str], nodes: frozenset[str]) -> frozenset[str]:
    """The node that reported no phase, or the one whose phase differs from all others; otherwise none.

    Args:
        hangs: As `stuck` returns them.
        nodes: Nodes of the attempt.
    """
    if len(nodes) == 1:
        return nodes
    silent = nodes - hangs.keys()
    if hangs and len(silent) == 1:
        return silent
    usual = Counter(hangs.values()).most_common(1)
    others = frozenset(host for host, phase in hangs.items() if phase != usual[0][0])
    return others & nodes if len(others) == 1 and len(hangs) > 2 else frozenset()


def bad_nodes(notes: Path, nodes: frozenset[str]) -> frozenset[str]:
    """Nodes whose preflight found a problem or left no record."""
    records = {record["node"]: record for record in map(read_json, notes.glob("node-*.json"))}
    return frozenset(node for node in nodes if node not in records or records[node]["problems"])


def step_back(runs: Sequence[Path]) -> list[Path]:
    """Set the newest checkpoint of each run aside, unless it is selected, so that the next start resumes from the one
    before it.

    Returns:
        Where they were moved.
    """
    moved = []
    for run in runs:
        there = sorted((run / "checkpoints").glob("step-*"))
        best = run / "best.json"
        try:
            selected = read_checked(best)[0]["step"] if best.exists() else None
        except errors.CheckpointError:  # the newest may be the selected one
            continue
        if len(there) < 2 or int(there[-1].name[5:]) == selected:
            continue
        aside = run / "nonfinite" / there[-1].name
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        moved.append(there[-1].rename(aside))
    return moved


def saved(notes: Path, runs: Sequence[Path]) -> dict[str, float]:
    """When the signal came (`heard_at`, unix time), and seconds until the last checkpoint after it (`saved_s`)."""
    heard = notes / "heard"
    if not heard.exists():
        return {}
    signalled = float(heard.read_text())
    times = [path.stat().st_mtime for run in runs for path in (run / "checkpoints").glob("step-*/state.json")]
    later = [when for when in times if when >= signalled]
    return {"heard_at": signalled, **({"saved_s": round(max(later) - signalled, 2)} if later else {})}


def main(arguments: Sequence[str]) -> int:
    """Run `begin` or `end`. Returns the exit code for the batch script."""
    parser = argparse.ArgumentParser(prog="python -m ccr_dist.cluster.job")
    parser.add_argument("what", choices=("begin", "end"))
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--heard", default="")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    here, job = Here.from_environment(), os.environ["CCR_JOB"]
    if given.what == "end":
        decision = end(here, given.command, code=given.code, heard=given.heard, job=job)
        return (given.code or errors.CRASH) if decision.action == "fail" else errors.DONE
    nodes = slurm.call("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    stopped = begin(here, given.command, nodes=nodes, job=job)
    return errors.DONE if stopped is None else NODE if stopped.action == "again" else errors.CRASH


if __name__ == "__main__":
    with errors.boundary():
        sys.exit(main(sys.argv[1:]))
