"""A small experiment as a pipeline, for tests on the cluster: pictures are described and captions translated by arrays
of tasks (a model server answers them), a retriever is trained on two nodes, measured and reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import toy
from tests.slurm.cluster import OVER, ROOT, SCRIPT, Cluster, log_of, until

PROMPTS = {
    "describe": {"views": {"detail": {"text": "{media} of {captions}", "max_tokens": 64}}},
    "translate": {"views": {"translation": {"text": "{text}", "max_tokens": 64}}, "filters": {"min_words": 1}},
}
COLUMNS = ("description.toy", "caption.es.chat")
CPU = "launch/accelerate/cpu.yaml"


@contextlib.contextmanager
def model_server(cluster: Cluster, folder: Path) -> Iterator[str]:
    """Its URL: a server on the login host, which every node reaches. FOLDER/delay: seconds an answer takes."""
    folder.mkdir()
    command = ["bash", SCRIPT, "on", "ctl", sys.executable, ROOT / "tests" / "chat_server.py", folder, "10.77.0.1"]
    with subprocess.Popen([*map(str, command)], env=cluster.environment) as process:
        try:
            port = until(
                "the model server listens", lambda: (folder / "port").exists() and (folder / "port").read_text()
            )
            yield f"http://10.77.0.1:{port}/v1"
        finally:
            process.terminate()


@dataclass
class Ground:
    """What experiments have in common, in FOLDER: a corpus, models, a config, prompts."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Ground:
        folder.mkdir()
        for name, prompt in PROMPTS.items():
            (folder / f"{name}-prompt.yaml").write_text(yaml.safe_dump(prompt))
        toy.dasd(folder, runtime={"checkpoint_every": 25, "keep": 99, "hang": 300, "trace": "samples"}, name="dasd")
        return cls(folder)

    def config(
        self, name: str, *, steps: int = 150, data: Path | None = None, column: str = "caption.es.toy", **more: Any
    ) -> str:
        """Arguments of `train` for a run of that name, in FOLDER/runs/NAME-s0."""
        words = {"name": name, "stages.cla.steps": steps // 3, "stages.cma.steps": steps - steps // 3}
        words |= {"data.targets": f"{{es: {column}}}", **more}
        if data is not None:
            words["data.train"] = f"[{{path: {data}}}]"
        return " ".join([f"{self.folder}/dasd.yaml", *(f"'{key}={value}'" for key, value in words.items())])

    def run(self, name: str) -> Run:
        return Run(self.folder / "runs" / f"{name}-s0")

    def data(self, folder: Path, source: Path | None = None) -> Path:
        """A copy of the training data (or of another dataset), for columns to be added."""
        shutil.copytree(source or self.folder / "data" / "train", folder)
        return folder

    def generation(self, data: Path, url: str, tasks: int = 3) -> dict[str, Any]:
        """Steps that make COLUMNS of a dataset."""
        chat = (
            f"--engine openai --model toy --set base_url={url} --set concurrency=2 --set retries=20 --set backoff_s=0.2"
            " --quiet"
        )
        prompt = f"--prompt {self.folder}"
        describe = f"describe {data} {chat} {prompt}/describe-prompt.yaml --captions caption.en --column {COLUMNS[0]}"
        translate = f"translate {data} {chat} {prompt}/translate-prompt.yaml --to es --column {COLUMNS[1]}"
        return {
            "describe": {"command": describe, "tasks": tasks},
            "translate": {"command": translate, "tasks": tasks, "after": []},
        }


@dataclass
class Run:
    """A training run."""

    folder: Path

    def saved(self) -> int:
        """The newest step with a checkpoint."""
        return max((int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*")), default=0)

    def losses(self) -> dict[int, float]:
        """By the step, of the log, which has each one once, however often the run was interrupted."""
        lines = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
        steps = [(line["step"], line["loss"]) for line in lines if "event" not in line]
        assert len(steps) == len(dict(steps)), steps
        return dict(steps)

    def steps(self) -> list[int]:
        return list(self.losses())

    def batches(self) -> dict[int, dict[int, str]]:
        """The item in each slot of each step; the same one where a step was made again after an interruption."""
        found: dict[int, dict[int, str]] = {}
        for path in (self.folder / "trace").glob("rank*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                for slot, item in zip(line["slots"], line["items"], strict=True):
                    assert found.setdefault(line["step"], {}).setdefault(slot, item) == item, (path, line)
        return found

    def starts(self) -> list[dict[str, Any]]:
        path = self.folder / "starts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def weights(self) -> str:
        return hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()


def training(config: str, nodes: int | str = 2, **more: Any) -> dict[str, Any]:
    return {"command": f"train {config}", "nodes": nodes, "ranks": 1, "launch": CPU, **more}


@dataclass
class Experiment:
    """FOLDER/pipeline.yaml, profile.yaml; the run is FOLDER/runs/toy."""

    cluster: Cluster
    folder: Path

    @classmethod
    def made(cls, cluster: Cluster, folder: Path, steps: dict[str, Any], **profile: Any) -> Experiment:
        folder.mkdir()
        self = cls(cluster, folder)
        self.write("pipeline", {"name": "toy", "folder": str(folder / "runs"), "steps": steps})
        common = {
            "python": sys.executable,
            "environment": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            "scratch": "/tmp",
            "time": "1:00:00",
            "free_disk_gib": 0.1,
            "preflight": {"bandwidth": False, "free_memory_gib": 0.1, "free_disk_gib": 0.1},
        }
        self.write("profile", common | profile)
        return self

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "toy"

    def write(self, name: str, values: Any) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def ccr_dist(self, *words: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return self.cluster.run(sys.executable, "-m", "ccr_dist", *words, timeout=timeout)

    def try_submit(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.ccr_dist("submit", self.folder / "pipeline.yaml", *more, "--profile", self.folder / "profile.yaml")

    def submit(self, *more: str) -> dict[str, str]:
        """The job of each step."""
        done = self.try_submit(*more)
        assert done.returncode == 0, done.stderr
        return self.jobs()

    def jobs(self) -> dict[str, str]:
        lines = [json.loads(line) for line in (self.run / "jobs.jsonl").read_text().splitlines()]
        steps = {line["token"]: line["step"] for line in lines if line["event"] == "submitting"}
        return {steps[line["token"]]: line["job"] for line in lines if line["event"] == "submitted"}

    def attempts(self, step: str, task: int = 0) -> list[dict[str, Any]]:
        """The ends of a step's attempts, {} of one without."""
        path = self.run / "steps" / step / "attempts" / f"{task}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        ends = {line["attempt"]: line for line in lines if line["event"] == "end"}
        return [ends.get(line["attempt"], {}) for line in lines if line["event"] == "start"]

    def status(self) -> dict[str, Any]:
        done = self.ccr_dist("status", self.run, "--json")
        assert done.returncode == 0, done.stderr
        return {step["step"]: step for step in json.loads(done.stdout)["steps"]}

    def why(self) -> str:
        """For a failed test: everything that was said."""
        return f"{self.ccr_dist('status', self.run).stdout}\n{log_of(self.run)}"

    def until(self, what: str, look: Callable[[], Any], seconds: float = 900) -> None:
        """As `cluster.until`; ends at once when a job ended badly, and says what there is to be said."""

        def alive() -> Any:
            states = self.cluster.jobs("--jobs=" + ",".join(self.jobs().values()))
            assert not (OVER - {"COMPLETED"}) & set(states.values()), states
            return look()

        try:
            until(what, alive, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.slurm('scontrol', 'show', 'job')}\n{self.why()}") from error

    def await_saved(self, run: Run, step: int) -> None:
        self.until(f"step {step} is saved", lambda: run.saved() >= step)

    def finish(self, seconds: float = 500) -> None:
        """Until the last step is done."""
        state = self.cluster.wait(list(self.jobs().values())[-1], seconds=seconds)
        assert state == "COMPLETED", self.why()


def columns(data: Path) -> dict[str, str]:
    """Digests of every shard of the generated columns, each of whose rows is there once."""
    from ccr_dist.data.table.dataset import Dataset

    dataset = Dataset.open(data)
    found = {}
    for name in COLUMNS:
        column = dataset.column(name)
        column.require_complete()
        for shard, rows in enumerate(dataset.shard_rows):
            assert all(column.read(shard, row) is not None for row in range(rows)), f"{name}: shard {shard} lacks a row"
            found[f"{name}/{shard}"] = hashlib.sha256(column.path(shard).read_bytes()).hexdigest()
    return found
