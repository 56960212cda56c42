"""Runs a study on this machine: one training after the other, each started as a person would start it.

A point that runs out of memory or fails is a recorded result, and the study goes on. What has ended is not run again;
what was interrupted is deleted and run from its beginning, since the steps of two starts are not one measurement.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ccr_dist import stopfile
from ccr_dist.cluster.preflight import gpus_here
from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import DONE, STOPPED, ConfigError
from ccr_dist.extras import advice
from ccr_dist.redact import without_secrets
from ccr_dist.resources import LAUNCH
from ccr_dist.scaling import record
from ccr_dist.scaling.plan import ScalingPlan, ScalingStudy, Trial
from ccr_dist.scaling.speeds import Measurement, measurements
from ccr_dist.train.assemble import check_columns

POLL_S = 0.2
LEFT_S = 120.0  # for which a training that an earlier start left behind may take to stop
Say = Callable[[str], None]


def run(plan: ScalingPlan, *, again: bool = False, dry_run: bool = False, say: Say) -> int:
    """Run what is left of a study.

    Args:
        plan: The study.
        again: Whether to measure points again that failed.
        dry_run: Whether to say only what would run.
        say: Prints a line.

    Returns:
        The exit code: DONE where at least one point of the study is measured; STOPPED; else that of the failures.

    Raises:
        ConfigError, DataError: The machine has too few GPUs, a column is missing, or the folder has records of another
            study. Nothing has run then.
    """
    study = plan.study
    if study.gpus and (asked := max(point.settings.world for point in plan.points)) > gpus_here():
        raise ConfigError(
            f"{plan.file}: gpus: true with {asked} processes, and this machine has {gpus_here()} GPU(s); take fewer"
            " processes, gpus: false, or where: slurm"
        )
    zero = next((p.settings.strategy for p in plan.points if p.settings.strategy.startswith("zero")), None)
    if zero is not None and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"{plan.file}: strategy {zero}: {advice('deepspeed')}, or leave that strategy out")
    speeds = measurements(plan)
    known = {trial.name: record.kept(trial) for trial in plan.trials}
    done = {name: each for name, each in known.items() if each and not (again and each.failed)}
    lost = {each.point for each in done.values() if each.failed}
    todo = [trial for trial in plan.trials if trial.name not in done and trial.point.name not in lost]
    say(
        f"study {study.name}: {len(plan.points)} points, {len(known)} trainings, {len(done)} have ended,"
        f" {len(todo)} to do; logs in {study.out}/logs"
    )
    if dry_run:
        for each in speeds:
            say(f"{each.name}: {shlex.join(each.command)}")
        for trial in todo:
            say(f"{trial.name}: {shlex.join(command(trial))}")
        return DONE
    for point in plan.points[:1]:  # all points read the same
        check_columns(point.config)
    with _held(Path(study.out)) as lock, _Stop() as stop:
        record.keep_study(plan)
        for each in speeds:
            begun, code = time.monotonic(), _measure(each, study, stop, lock)
            if stop.heard:
                say(f"{stop.heard}: stopped; the same command goes on from here")
                return STOPPED
            if code != DONE:
                say(
                    f"{each.name}: exit code {code}: {record.tail(each.log)}; see {each.log}, or leave `measure` out of"
                    " the study"
                )
                return code
            say(f"{each.name}: measured, {time.monotonic() - begun:.0f} s")
        for number, trial in enumerate(todo, 1):
            if trial.point.name in lost:
                say(f"[{number}/{len(todo)}] {trial.name}: not run: the point has failed before")
                continue
            ended = None if stop.heard else _train(trial, stop, lock)
            if ended is None:
                say(f"{stop.heard}: stopped; the same command goes on from here")
                return STOPPED
            known[trial.name] = ended
            if ended.failed:
                lost.add(ended.point)
            say(f"[{number}/{len(todo)}] {trial.name}: {ended.said}, {ended.seconds:.0f} s{_why(ended)}")
    codes = {each.exit for each in known.values() if each is not None}
    return DONE if DONE in codes or not codes else max(codes)


def _why(ended: record.Record) -> str:
    return f": {ended.error.splitlines()[-1]}" if ended.error else ""


def command(trial: Trial) -> list[str]:
    """The command line of a training: a launcher, and `ccr-dist train`."""
    point = trial.point
    world = str(point.settings.world)
    profile = str(LAUNCH.find(point.settings.strategy))
    launcher = ["-m", "ccr_dist.launcher", "--config_file", profile, "--num_processes", world]
    return [sys.executable, *launcher, "-m", "ccr_dist", *trial.command, "--world", world]


def shown_command(words: list[str]) -> tuple[str, ...]:
    """A command line for reports: without secrets, and without the places of this installation."""
    places = (f"{Path.cwd()}/", f"{LAUNCH.folder.parent.parent}/")  # the working folder, and where profiles come from

    def shown(word: str) -> str:
        if word == sys.executable:
            return "python"
        return without_secrets(next((word.removeprefix(place) for place in places if word.startswith(place)), word))

    return tuple(map(shown, words))


def _train(trial: Trial, stop: _Stop, lock: int) -> record.Record | None:
    """One training and its record; None if it was stopped, and left nothing."""
    _clear(trial.folder)
    words = command(trial)
    file = trial.out / "stop"
    begun = time.monotonic()

    def pass_on(process: subprocess.Popen[bytes]) -> None:
        if not file.exists():
            file.write_text(stop.heard)

    code = _ended(words, trial.log, trial.point.study, stop, lock, pass_on, {stopfile.VARIABLE: str(file)})
    file.unlink(missing_ok=True)
    if stop.heard and code != DONE:
        _clear(trial.folder)
        return None
    shown = shown_command(words)
    ended = record.write(trial, command=shown, exit=code, seconds=time.monotonic() - begun)
    for name in ("checkpoints", "model", "model.safetensors"):  # what was measured is in the log
        path = trial.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return ended


def _measure(asked: Measurement, study: ScalingStudy, stop: _Stop, lock: int) -> int:
    """Measures the machine; the exit code. It keeps what it has measured at once, and nothing when it is ended."""
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "ccr_dist", *asked.command]
    return _ended(words, asked.log, study, stop, lock, lambda process: os.killpg(process.pid, signal.SIGTERM), {})


def _ended(
    words: list[str], path: Path, study: ScalingStudy, stop: _Stop, lock: int,
    pass_on: Callable[[subprocess.Popen[bytes]], None], variables: dict[str, str],
) -> int:  # fmt: skip
    """Starts a command, and waits for its end.

    Args:
        words: The command line.
        path: Its log.
        study: The study.
        stop: Whether it shall stop.
        lock: Of the study's folder.
        pass_on: Asks it to stop; called again until it has.
        variables: Of its environment, besides ours.

    Returns:
        Its exit code; 128 and the number of a signal that ended it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = {} if study.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    with disk_errors(path), path.open("wb") as log:
        log.write(f"$ {without_secrets(shlex.join(words))}\n".encode())
        log.flush()
        # In its own session: Ctrl-C in a terminal reaches only this process, which passes it on.
        with subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, **hidden, **variables}, start_new_session=True,
            pass_fds=[lock],
        ) as process:  # fmt: skip
            while process.poll() is None:
                if stop.heard:
                    pass_on(process)
                time.sleep(POLL_S)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _held(out: Path) -> Iterator[int]:
    """Hold the study's folder. The descriptor of its lock is handed to trainings: a killed study leaves one behind,
    which holds the folder until it has stopped.

    Raises:
        ConfigError: Another process works on the study, or a training that was left behind does not stop.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock, stop = out / "lock", out / "stop"
    deadline = time.monotonic() + LEFT_S
    with lock.open("a+") as file:
        while not _taken(file.fileno()):
            holder = lock.read_text().strip()
            if holder.isdecimal() and Path(f"/proc/{holder}").exists():
                raise ConfigError(f"{out}: process {holder} works on this study; wait for it, or stop it")
            stop.touch()
            if time.monotonic() > deadline:
                raise ConfigError(f"{out}: a training that was left behind does not stop; end it (see {out}/logs)")
            time.sleep(POLL_S)
        stop.unlink(missing_ok=True)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Stop:
    """Context manager: the first SIGINT or SIGTERM is remembered, the second one interrupts at once."""

    heard = ""

    def __enter__(self) -> _Stop:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard:
            raise KeyboardInterrupt
        self.heard = signal.Signals(number).name
