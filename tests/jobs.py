"""A dataset of captions, an engine that shouts them, and processes that use it, for tests of jobs.

captions(root, rows=(3, 2))   a dataset; row i of shard s has the captions "s-i one" and "s-i two"
Shout                         the translation engine `shout`: upper case; it can log what it was given, dawdle, and
                              misbehave
shouting(root)                the arguments of `ccr-dist` that run it
worker(root), end(worker)     a process that runs it; what it said
content(folder)               name -> bytes of everything in a column folder that has to be equal between equal runs
column_files(folder)          the names in a column folder
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base


def captions(root: Path, rows: Sequence[int] = (3, 2), values: dict[tuple[int, int], Any] | None = None) -> Dataset:
    """`values`: other captions (or None) for some (shard, row)."""
    keys = [[f"{s}-{i}" for i in range(n)] for s, n in enumerate(rows)]
    dataset = create_dataset(root, name="toy", split="train", keys=keys)
    column = create_column(dataset, "caption.en", kind="texts", extension="json", plan={"recipe": "toy"}, provenance={})
    for s, names in enumerate(keys):
        texts = [(values or {}).get((s, i), [f"{name} one", f"{name} two"]) for i, name in enumerate(names)]
        column.commit(s, [None if text is None else column.encode(text) for text in texts])
    return dataset


# Until a worker has imported torch and its engine takes 5 s alone, and minutes beside other tests on a busy machine: a
# time that fits the one is too short for the other, so only what will never happen is waited for in vain.
PATIENCE_S = 600
WORKER = Path(__file__).parent / "procs" / "jobs_worker.py"


@base.translators.register("shout")
class Shout(base.Translator):
    class Options(base.EngineOptions):
        log: str | None = None  # file: one line a text, written before it is translated
        dawdle_s: float = 0  # a call
        version: str = "1"
        fail: str | None = None  # a text with this in it is refused
        die: str | None = None  # at a text with this in it the engine is gone
        lose: int = 0  # translations that are missing at the end of each answer
        at: str | None = None  # at a text with this in it ...
        what: str = ""  # ... the engine hangs (`hang`), or its process gets this signal (`KILL`, `STOP`)

    batch = 7

    def __init__(self, source: str = "en", target: str = "xx", options: Options = Options()) -> None:
        self.options = options
        self.calls: list[list[str]] = []
        self.loaded = 0

    def identity(self) -> dict[str, Any]:
        return {"engine": "shout", "version": self.options.version}

    def load(self) -> None:
        self.loaded += 1

    def translate(self, texts: list[str]) -> list[str | DataError]:
        self.calls.append(texts)
        if self.options.log:
            fd = os.open(self.options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(fd, "".join(f"{text}\n" for text in texts).encode())
            os.close(fd)
        time.sleep(self.options.dawdle_s)
        if self.options.at and any(self.options.at in text for text in texts):
            if self.options.what == "hang":
                time.sleep(3600)
            os.kill(os.getpid(), signal.Signals[f"SIG{self.options.what}"])
        if self.options.die and any(self.options.die in text for text in texts):
            raise EngineError("the engine is gone")
        fail = self.options.fail
        answers = [DataError(f"refused: {text}") if fail and fail in text else text.upper() for text in texts]
        return answers[: len(answers) - self.options.lose]


@dataclass(frozen=True)
class Deadly:
    """A preparer that ends its process at some keys, as a broken decoder does."""

    keys: tuple[str, ...]

    def __call__(self, key: str, values: dict[str, Any]) -> Any:
        if key in self.keys:
            os._exit(9)
        return values["caption.en"]


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes()
        for p in sorted(folder.iterdir())
        if not p.name.endswith(".stats.json") and "column.json" not in p.name
    }


def column_files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def shouting(root: Path, *more: str) -> list[str]:
    """The arguments of `ccr-dist` that translate caption.en into caption.xx.shout."""
    return ["translate", str(root), "--engine", "shout", "--to", "xx", *more]


def worker(root: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """A process of `shouting`, with more in its environment."""
    command = [sys.executable, str(WORKER), *shouting(root, *more)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a `worker` said; it has to end with this exit code."""
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, said
    return said


def until(true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until something is true.

    Args:
        true: Whether it is.
        process: What makes it true; if that ends before, there is nothing to wait for.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        ended = process is not None and process.poll() is not None
        assert not ended or true(), f"a worker ended before it came true: {process and end(process)}"
        assert time.monotonic() < deadline, f"did not come true in {PATIENCE_S} s"
        time.sleep(0.01)


def state(pid: int) -> str:
    """The letter that the kernel gives for the state of a process (T: stopped, Z: ended), or `gone`."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"
