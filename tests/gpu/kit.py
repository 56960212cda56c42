"""Runs the parts of the kit one after the other, each in a process of its own and within its time: `run.sh` starts it.

A part may use its own time and what the parts before it left. One that is not done then is ended, and counted as cut;
what it had measured stays. So the last parts are what a short run leaves out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.environment import environment

ROOT = Path(__file__).parents[2]
STOPPED = 143  # by SIGTERM
NEEDED = (
    "torch", "torchvision", "transformers", "accelerate", "deepspeed", "hypothesis", "numpy", "open_clip", "peft",
    "PIL", "pydantic", "pytest", "pytest_timeout", "rich", "safetensors", "tensorboard", "timm", "tokenizers", "typer",
    "webdataset", "yaml",
)  # fmt: skip
FRAMES = 40  # lines of a part's output that are shown when it failed
ENDING = 8  # seconds that are kept for ending the last part


@dataclass(frozen=True)
class Part:
    """A module of this folder, and its share of the time."""

    name: str
    about: str
    share: float


# In the order of worth. Shares of nine minutes, about in seconds.
PARTS = (
    Part("marked", "tests that need CUDA", 110),
    Part("steps", "DASD and LECCR in bf16, beside the published loop", 140),
    Part("losses", "contrastive losses of large batches, beside open_clip's", 60),
    Part("transfers", "loader with pinned transfers", 40),
    Part("sharding", "FSDP2 and ZeRO on one device", 80),
    Part("compiled", "torch.compile", 60),
    Part("planned", "the planner's predictions", 30),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="run.sh", description="Tests and measurements on one GPU.")
    parser.add_argument("--cpu", action="store_true", help="the same parts, small, on the CPU")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of kit.json and kit.log")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which everything has ended")
    parser.add_argument("--parts", help="names with commas between them; default: all of " + ", ".join(names()))
    asked = parser.parse_args()
    chosen = asked.parts.split(",") if asked.parts else names()
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"--parts: {', '.join(unknown)}: expected some of {', '.join(names())}")
    if asked.minutes <= 0:
        parser.error(f"--minutes {asked.minutes:g}: expected more than 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # a part that runs is ended, too
    # `run.sh` has unpacked wheels since it began
    begun = time.monotonic() - max(0.0, time.time() - float(os.environ.get("KIT_BEGUN", "inf")))
    sys.exit(Kit([part for part in PARTS if part.name in chosen], asked, begun).run())


def names() -> list[str]:
    return [part.name for part in PARTS]


class Kit:
    """The parts, one after the other, and what they found.

    Args:
        parts: in their order.
        asked: the options.
        begun: when the minutes began, by the monotonic clock.
    """

    def __init__(self, parts: list[Part], asked: argparse.Namespace, begun: float) -> None:
        self.parts, self.cpu, self.begun, self.seconds = parts, asked.cpu, begun, 60 * asked.minutes - ENDING
        self.stopped = False
        asked.out.mkdir(parents=True, exist_ok=True)
        self.json, self.log = asked.out / "kit.json", asked.out / "kit.log"
        self.found: dict[str, Any] = {**about(asked.cpu), "minutes": asked.minutes, "parts": {}}

    def run(self) -> int:
        """0: all that ran held; STOPPED: it was asked to end, and kept what it had found."""
        whole, so_far = sum(part.share for part in self.parts), 0.0
        self.log.write_bytes(b"")
        for part in self.parts:
            so_far += part.share
            left = self.begun + self.seconds * so_far / whole - time.monotonic()
            self.found["parts"][part.name] = {"about": part.about, **self._part(part, left)}
            self._write()
            self._tell(part)
            if self.stopped:
                return STOPPED
        self.found["seconds"] = round(time.monotonic() - self.begun, 1)
        self._write()
        wrong = [name for name, found in self.found["parts"].items() if found["state"] == "failed"]
        print(f"kit: {self.json}" + (f"; failed: {', '.join(wrong)}" if wrong else ""))
        return 1 if wrong else 0

    def _part(self, part: Part, seconds: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="gpu-kit-") as folder:
            out, text, begun = Path(folder) / "found.json", Path(folder) / "log", time.monotonic()
            command = [sys.executable, "-m", f"tests.gpu.{part.name}", str(out), *(["--cpu"] if self.cpu else [])]
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.cpu else {}
            variables = {**os.environ, **hidden, "TMPDIR": folder}
            code = None
            try:
                with text.open("wb") as file:
                    code = ended(command, seconds, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
            except (SystemExit, KeyboardInterrupt):
                self.stopped = True
            said = text.read_text(errors="replace")
            with self.log.open("a") as log:
                log.write(f"== {part.name}\n{said}\n")
            found = json.loads(out.read_text()) if out.exists() else {}
            state = "cut" if code is None else "skipped" if "skipped" in found else "held" if code == 0 else "failed"
            if found.get("wrong"):
                state = "failed"  # what was wrong before it was cut
            last = {"said": said.splitlines()[-FRAMES:]} if state == "failed" else {}
            return {"state": state, "code": code, "seconds": round(time.monotonic() - begun, 1), **found, **last}

    def _write(self) -> None:
        new = self.json.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1) + "\n")
        new.replace(self.json)

    def _tell(self, part: Part) -> None:
        found = self.found["parts"][part.name]
        print(f"{part.name:10}{found['state']:8}{found['seconds']:7.1f} s  {found.get('skipped', part.about)}")
        counts = [found["counts"]] if "counts" in found else []
        for line in [*counts, *found.get("lines", []), *found.get("wrong", []), *found.get("said", [])]:
            print("   ", json.dumps(line) if isinstance(line, dict) else line)


def ended(command: list[str], seconds: float, **options: Any) -> int | None:
    """The exit code of a command, or None where it was ended after `seconds`, with the processes that it started."""
    if seconds <= 1:
        return None
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for sign, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience if process.poll() is None else 0)


def about(cpu: bool) -> dict[str, Any]:
    """Device, versions and commit. Ends the program where a package is missing."""
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise SystemExit(
            f"run.sh: {sys.executable} has no {', '.join(missing)}; bring what is missing with --wheels"
            " (tests/gpu/wheels.sh fetches it; torch, torchvision and transformers have to be there)"
        )
    code = (
        "import torch, json; print(json.dumps([torch.cuda.get_device_name() if torch.cuda.is_available() else None]))"
    )
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hidden}, stdout=subprocess.PIPE, text=True, check=True
    )
    (device,) = json.loads(done.stdout.splitlines()[-1])
    if device is None and not cpu:
        raise SystemExit("run.sh: no CUDA device is seen; `--cpu` runs the parts in their small form on the CPU")
    return {"device": device or "cpu", "cpu_form": cpu, **environment()}


if __name__ == "__main__":
    main()
