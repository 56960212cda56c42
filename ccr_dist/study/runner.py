"""Runs a study: every run in its own process, several at a time; complete runs are not repeated.

A failed run does not stop the others; all failures are reported at the end, with the last lines of their logs.
Interrupted runs resume, as `ccr-dist train` does. The exit code is DONE, STOPPED (the same command resumes), the
failures' common code, or CRASH. Runs that another process trains at this moment are left to it, and the others are
carried out; the exit code is then HeldError's, unless runs have failed.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import CRASH, DONE, STOPPED, ConfigError, HeldError
from ccr_dist.study.plan import REMEDY, Run, State, StudyPlan, states
from ccr_dist.study.warm import Warm

POLL = 0.1  # seconds
TAIL = 12  # lines of a failed run's log
Say = Callable[[str], None]


@dataclass
class Failure:
    run: Run
    code: int
    log: Path


@dataclass
class _Crew:
    """Runs processes, at most `jobs` at a time."""

    plan: StudyPlan
    jobs: int
    threads: int
    warm: Warm
    total: int
    say: Say
    done: int = 0
    stopping: str | None = None
    seconds: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    held: list[Run] = field(default_factory=list)  # by another process
    lost: dict[str, str] = field(default_factory=dict)  # why runs are not there, and those that need them not started

    def carry_out(self, runs: Sequence[Run]) -> None:
        """Run processes until all have ended, or after a stop request, until the running ones have ended."""
        waiting, under_way = list(runs), dict[str, tuple[Run, BaseProcess, float]]()
        told = False
        while under_way or (waiting and not self.stopping):
            while not self.stopping and len(under_way) < self.jobs and (run := self._next(waiting, under_way)):
                waiting.remove(run)
                under_way[run.name] = (run, self._start(run), time.monotonic())
            if self.stopping and not told:
                told = True
                self.say(f"{self.stopping}: the runs under way save and stop")
                for _, process, _ in under_way.values():
                    process.terminate()
            time.sleep(POLL)
            for run, process, begun in list(under_way.values()):
                if process.exitcode is not None:
                    del under_way[run.name]
                    self._ended(run, process.exitcode, time.monotonic() - begun)

    def _next(self, waiting: list[Run], under_way: Mapping[str, object]) -> Run | None:
        """The first run that can begin. Runs whose source has failed are taken out of `waiting`, with a word."""
        for run in list(waiting):  # a source stands before what starts from it
            if run.after in self.lost:
                waiting.remove(run)
                self.say(f"{run.name}: not started: it needs {run.after}, which {self.lost[run.after]}")
                self.lost[run.name] = "was not started"
                self.done += 1
        pending = {run.name for run in waiting} | under_way.keys()
        return next((run for run in waiting if run.after not in pending), None)

    def log(self, run: Run) -> Path:
        return Path(self.plan.study.out) / "logs" / f"{run.name}.log"

    def _start(self, run: Run) -> BaseProcess:
        command, path = command_of(run, self.threads), self.log(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(path), path.open("a", encoding="utf-8") as log:
            log.write(f"$ ccr-dist {shlex.join(command)}\n")
        return self.warm.start(command, path)

    def _ended(self, run: Run, code: int, seconds: float) -> None:
        if code == DONE and not run.result.exists():
            code = CRASH
        if self.stopping and code != DONE:
            return  # resumes next time
        self.done += 1
        self.seconds.append(seconds)
        if code == HeldError.exit_code:
            self.held.append(run)
            self.lost[run.name] = "another process holds"
        elif code != DONE:
            self.failures.append(Failure(run, code, self.log(run)))
            self.lost[run.name] = "failed"
        elif self.plan.study.checkpoints == "drop" and run not in self.plan.first:
            shutil.rmtree(run.config.folder / "checkpoints", ignore_errors=True)
        left = self.total - self.done
        remaining = sum(self.seconds) / len(self.seconds) * left / min(self.jobs, max(1, left))
        said = {DONE: "done", HeldError.exit_code: "held by another process"}.get(code, f"FAILED with exit code {code}")
        self.say(
            f"[{self.done:>{len(str(self.total))}}/{self.total}] {run.name}: {said}, {seconds:.0f} s; ETA"
            f" {_clock(remaining)}"
        )


def command_of(run: Run, threads: int) -> list[str]:
    """Arguments of `ccr-dist` for a run. The number of threads, which does not affect results, comes before the study's
    own overrides.
    """
    what, config, *rest = run.arguments
    return [what, config, f"runtime.threads={threads}", *rest]


def run_study(
    plan: StudyPlan,
    *,
    jobs: int,
    threads: int = 1,
    dry_run: bool = False,
    say: Say = lambda text: print(text, flush=True),
) -> int:
    """Run the runs of a study that are not complete.

    Args:
        plan: The study.
        jobs: Runs at a time, each in its own process.
        threads: CPU threads of each run.
        dry_run: Only say what would be done.
        say: Prints a line.

    Returns:
        The exit code.

    Raises:
        ConfigError: A run folder holds another run, a run was trained on other data or weights than there are now, or
            an argument is out of range. Nothing has run then.
        DataError: A column is missing. Nothing has run then.
    """
    if jobs < 1 or threads < 1:
        raise ConfigError(f"--jobs {jobs}, --threads {threads}: expected at least 1")
    found, changed = _states(plan)
    first = [run for run in plan.first if found[run.name] != "complete"]
    runs = [run for run in plan.runs if found[run.name] != "complete"]
    if dry_run:
        for run in (*plan.first, *plan.runs):
            say(f"{found[run.name]:<11}  {run.name:<28}  ccr-dist {shlex.join(run.arguments)}")
            if run.name in changed:
                say(f"{'':<11}  {'':<28}  changed since: {', '.join(changed[run.name])}")
    counts = Counter(found.values())
    parts = ", ".join(f"{counts[kind]} of them {kind}" for kind in ("interrupted", "outdated") if counts[kind])
    left = len(first) + len(runs)
    say(
        f"study {plan.study.name}: {len(found)} runs, {len(found) - left} complete, {left} to do"
        + (f" ({parts})" if parts else "")
        + f"; {jobs} at a time, logs in {plan.study.out}/logs"
    )
    if dry_run:
        return DONE
    _refuse_outdated([run for run in (*first, *runs) if run.config.stages and run.name in changed], changed)
    _check_data((*first, *runs))
    crew = _Crew(plan, jobs, threads, Warm(threads), left, say)
    with _stop_requests(crew):
        crew.carry_out(first)
        if not crew.lost:
            crew.carry_out(runs)
        elif runs:
            why = " and ".join(f"{name}, which {what}" for name, what in crew.lost.items())
            say(f"{len(runs)} runs were not started: they need {why}")
    _tell(crew.failures, say)
    if crew.held:
        names = ", ".join(run.name for run in crew.held)
        say(f"\nheld by another process, and left to it: {names}; when it has ended, the same command does the rest")
    if crew.stopping:
        say("stopped; the same command resumes from here")
        return STOPPED
    codes = {failure.code for failure in crew.failures}
    if not codes:
        return HeldError.exit_code if crew.held else DONE
    return codes.pop() if len(codes) == 1 and min(codes) > 0 else CRASH


def _states(plan: StudyPlan) -> tuple[dict[str, State], dict[str, tuple[str, ...]]]:
    """Name -> how far a run is, and of outdated ones what has changed. A run that trains nothing and takes weights of
    one that is still to be made is outdated, too: `ccr-dist evaluate` keeps its result if the weights turn out to be
    the same.
    """
    runs = (*plan.first, *plan.runs)
    looked_at = states(runs)
    found: dict[str, State] = {}
    unmade: set[Path] = set()  # folders
    for run in runs:
        here, config = looked_at[run.name][0], run.config
        sources = [Path(each) for each in (config.init_from, config.backbone.weights) if each is not None]
        if not config.stages and any(unmade & {each, *each.parents} for each in sources) and here == "complete":
            here = "outdated"
        if here != "complete":
            unmade.add(config.folder)
        found[run.name] = here
    return found, {name: changed for name, (_, changed) in looked_at.items() if changed}


def _refuse_outdated(runs: Sequence[Run], changed: Mapping[str, Sequence[str]]) -> None:
    """ConfigError where runs were trained on something else than is there now: `train` does not continue them."""
    if runs:
        how_many = f"{len(runs)} runs were" if len(runs) > 1 else "1 run was"
        shown = [f"{run.config.folder}: {', '.join(changed[run.name])}" for run in runs[:12]]
        more = [f"... {len(runs) - 12} more"] if len(runs) > 12 else []
        raise ConfigError(
            f"{how_many} trained on something else than is there now:\n  "
            + "\n  ".join((*shown, *more))
            + f"\nFor each, {REMEDY}; or bring back what has changed"
        )


def _check_data(runs: Sequence[Run]) -> None:
    """Check that every column that a run reads exists; once per row, since all seeds read the same."""
    from ccr_dist.train.assemble import check_columns

    for run in {run.row.name: run for run in runs}.values():
        check_columns(run.config)


def _tell(failures: Sequence[Failure], say: Say) -> None:
    if failures:
        say(f"\n{len(failures)} run{'s' if len(failures) > 1 else ''} failed:")
    for failure in failures:
        say(f"  {failure.run.name}: exit code {failure.code}; {failure.log} ends with")
        for line in failure.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]:
            say(f"    | {line}")


@contextmanager
def _stop_requests(crew: _Crew) -> Iterator[None]:
    """Context manager: the first SIGINT or SIGTERM requests a stop, the second one interrupts at once."""

    def heard(number: int, frame: FrameType | None) -> None:
        if crew.stopping:
            raise KeyboardInterrupt
        crew.stopping = signal.Signals(number).name

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
