"""What a run says about itself: progress on the terminal, `log.jsonl`, TensorBoard, and Weights & Biases where it is
asked for. Written by rank 0 only.

A line is a step, with its loss terms and times, or an event: validation, checkpoint (`stall_s`: how long training
waited), truncated, held (bytes on each rank), spike. What nests in a line is `group/key` elsewhere: `speed`
(`speed.py`) and `norms`, of the gradient's groups.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ccr_dist import terminal
from ccr_dist.config import RunConfig, as_dict
from ccr_dist.data.storage.json_lines import line_of, read_lines
from ccr_dist.data.storage.store import disk_errors, replace_atomic
from ccr_dist.errors import ConfigError


class Telemetry:
    """Log of one run; a resumed run continues the file from the resumed step, as if it had never stopped.

    Args:
        run: the run folder.
        active: False on every rank but 0: then all calls do nothing.
        resumed_step: lines of later steps, written by a process that died, are dropped.
        config: of the run, for Weights & Biases, which is logged to where `runtime.wandb` names a project.

    Raises:
        ConfigError: runtime.wandb is set, but wandb is not installed (on every rank).
    """

    def __init__(
        self, run: Path, *, active: bool, resumed_step: int, total_steps: int, title: str, config: RunConfig
    ) -> None:
        self.active = active
        self.console = terminal.console(stderr=True)
        # that a line could not be written; raised by `check`, when all ranks are ready for it
        self.trouble: Exception | None = None
        if config.runtime.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError("runtime.wandb: wandb is not installed: pip install wandb, or leave the key out")
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "log.jsonl"
        _truncate(self.path, resumed_step)
        self._file = self.path.open("ab")
        _leave_to_settle()
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1)
        self._wandb = _wandb(run, title, config)
        self._total = total_steps
        self._title = title
        self._spoken = time.monotonic()
        self._started = (time.monotonic(), resumed_step)
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
            self._task = self._bar.add_task(title, total=total_steps, completed=resumed_step, note="")
            self._bar.start()

    def step(self, step: int, values: Mapping[str, Any], *, keep: bool) -> None:
        """Progress of one step; its values go to the files where `keep`."""
        if not self.active:
            return
        if keep:
            self._write({"step": step, **values})
        note = f"{values['stage']} loss {values['loss']:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._spoken > 10 or step == self._total:
            self._spoken = time.monotonic()
            begun, first = self._started
            left = (time.monotonic() - begun) / max(1, step - first) * (self._total - step)
            print(f"{self._title}: step {step}/{self._total}  {note}  ETA {left:.0f} s", file=sys.stderr, flush=True)

    def event(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Something that is no step: a validation, a checkpoint."""
        if self.active:
            self._write({"step": step, "event": name, **values})

    def say(self, text: str) -> None:
        if self.active:
            self.console.print(f"{self._title}: {text}", highlight=False, markup=False, soft_wrap=True)

    def check(self) -> None:
        """Raises what kept a line from being written."""
        if self.trouble is not None:
            raise self.trouble

    def settle(self) -> None:
        """All lines are written, TensorBoard's too, or what kept them from it is raised."""
        self.check()
        if self.active:
            self._board.flush()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._put(line)
        except Exception as error:
            self.trouble = self.trouble or error

    def _put(self, line: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(line_of(line))
            self._file.flush()
        kind = line.get("event", "train")
        numbers = {f"{kind}/{key}": value for key, value in _flat(line) if key != "step"}
        for key, value in numbers.items():
            self._board.add_scalar(key, value, line["step"])
        if self._wandb is not None:
            self._wandb.log({**numbers, "step": line["step"]})

    def close(self) -> None:
        if self.active:
            if self._bar is not None:
                self._bar.stop()
            with contextlib.suppress(OSError):  # every line was flushed, and what could not be is reported by `check`
                self._file.close()
            with contextlib.suppress(OSError):
                self._board.close()
            if self._wandb is not None:
                self._wandb.finish()


def _leave_to_settle() -> None:
    """TensorBoard's thread keeps its error for the next call, which raises it; it need not print a traceback as
    well.
    """
    hook = threading.excepthook

    def but_the_board(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread" or not isinstance(arguments.exc_value, OSError):
            hook(arguments)

    if getattr(hook, "__name__", "") != but_the_board.__name__:
        threading.excepthook = but_the_board


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in a line, those of its groups as `group/key`."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{inner}", number) for inner, number in _flat(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _wandb(run: Path, title: str, config: RunConfig) -> Any:
    """The run over there, one and the same however often this one is resumed; None where none is asked for."""
    if config.runtime.wandb is None:
        return None
    import wandb

    identity = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
    logged = wandb.init(
        project=config.runtime.wandb, name=title, id=identity, resume="allow", dir=run, config=as_dict(config)
    )
    logged.define_metric("*", step_metric="step")  # its own counter cannot go back to where a resumed run begins
    return logged


def _truncate(path: Path, step: int) -> None:
    found = read_lines(path)
    if found.damaged:
        which = ", ".join(map(str, found.damaged[:5]))
        print(f"{path}: damaged in line {which}; what it said is lost, the other lines are kept", file=sys.stderr)
    lines = [line for line in found.values if isinstance(line.get("step"), int) and line["step"] <= step]
    replace_atomic(path, b"".join(map(line_of, lines)))
