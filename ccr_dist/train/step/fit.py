"""One training stage in closed form: sums over all rows of all ranks, then solutions, of which validation keeps one.

Sums are float64, so their order matters to the last few bits only: any number of processes gives the same weights. They
are saved from time to time, with the blocks that they hold, so a run that was killed adds up what is left.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccr_dist.config import FitConfig, RunConfig
from ccr_dist.data.storage.store import digest_json, disk_errors
from ccr_dist.data.stream.chance import mix
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.stream.matrices import Block, Matrices
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.models import tensorfile
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.watch.signals import StopRequest

SAVE_S = 60.0  # between two saves of a rank's sums
_SUMS = "sums"  # the folder of those in a run folder
_CAPTIONS = "captions/"  # key of how many of a language were summed up, beside the method's own sums
Sums = dict[str, Tensor]
Validate = Callable[[], tuple[float, dict[str, Any]]]


class FitStage:
    """A stage in closed form on this rank.

    Args:
        name: Name of the stage, in the config and in the method.
        config: The run config.
        step: Backbone and method.
        strategy: The strategy of the run; every rank holds all weights here.
        folder: The run folder.
        stop: Knows whether the run was asked to stop.
        datasets: The datasets to read.
        fields: The columns to read.
        alive: Called for every block.

    Attributes:
        captions: How many of each language were summed up, once `run` has done that.

    Raises:
        ConfigError: The stage cannot be carried out in this way.
    """

    def __init__(
        self,
        name: str,
        *,
        config: RunConfig,
        step: Step,
        strategy: Strategy,
        folder: RunFolder,
        stop: StopRequest,
        datasets: Sequence[Dataset],
        fields: Fields,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        settings = config.stages[name]
        assert isinstance(settings, FitConfig), f"stage {name} is not in closed form"
        if strategy.in_shards:
            raise ConfigError(
                f"{config.name}: runtime.checkpoint: sharded has no use for stage {name}, which every process solves as"
                " a whole; leave it out"
            )
        self.name, self.settings, self.captions = name, settings, dict[str, int]()
        self._step, self._method, self._strategy, self._stop, self._alive = step, step.method, strategy, stop, alive
        self._matrices = Matrices(datasets, fields, rows=settings.batch, seed=mix(config.seed, "draw", name))
        self._languages = tuple(fields.query_features)
        self._parts = _Parts(folder, name, self._matrices.blocks, [each.digest for each in datasets])
        for parameter in step.parameters():
            parameter.requires_grad_(False)

    def run(self, validate: Validate) -> tuple[float, dict[str, Any], list[dict[str, Any]]]:
        """Sum up, solve, and leave the best solution in the weights. Collective.

        Args:
            validate: Measures the weights as they are; the first of equals is kept.

        Returns:
            Value and log lines of the best solution, and of every one its label and value.

        Raises:
            ConfigError: The system is singular, or a language has not a single caption.
            Stopped: The run was asked to stop; what was summed up is kept.
        """
        self._begin()
        sums = self._counted(self._sum())
        solved: list[Any] = []
        self._strategy.together(
            lambda: solved.extend(self._method.solutions(self.name, sums) if self._strategy.main else ())
        )
        solutions = self._strategy.agree(solved)
        tried: list[dict[str, Any]] = []
        best: tuple[float, dict[str, Any], Mapping[str, Tensor]] | None = None
        for label, weights in solutions:
            self._load(weights)
            value, lines = validate()
            tried.append({**label, "value": value})
            if best is None or value > best[0]:
                best = value, {**label, **lines}, weights
        assert best is not None, f"method {self._method.name} has no solution"
        self._load(best[2])
        return best[0], best[1], tried

    def snapshot(self, kept: Mapping[str, nn.Parameter]) -> tuple[Sums, Sums, Sums]:
        """Weights, and no state of an optimiser or of auxiliary networks, for a checkpoint."""
        return {name: parameter.detach().cpu().clone() for name, parameter in kept.items()}, {}, {}

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        parameters = dict(self._step.named_parameters())
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)

    def _begin(self) -> None:
        """Draw the captions that the method asks for: those with the least random numbers."""
        number, strategy = self._method.drawn(self.name), self._strategy
        if not number:
            return
        kept: list[tuple[np.ndarray, np.ndarray]] = []

        def least(of: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
            draws, rows = (np.concatenate(each) for each in zip(*of, strict=True))
            first = np.argsort(draws, kind="stable")[:number]
            return [(draws[first], rows[first])]

        blocks = self._matrices.blocks
        for turn in range(-(-len(blocks) // strategy.world)):

            def add(at: int = turn * strategy.world + strategy.rank) -> None:
                if at < len(blocks):
                    found = self._matrices.read(blocks[at])
                    if len(found["query"]):
                        kept[:] = least([*kept, (found["draw"], found["query"])])
                    self._alive()

            strategy.together(add)
            self._stop.leave(strategy)
        found = [each for of_rank in strategy.all(kept) for each in of_rank]
        if not found:
            self._counted({})
        [(_, rows)] = least(found)
        self._method.begin(self.name, torch.from_numpy(rows).to(strategy.device))

    def _sum(self) -> Sums:
        """The sums over all blocks, on every rank."""
        strategy, blocks = self._strategy, self._matrices.blocks
        found: list[tuple[Sums, set[int]]] = []
        strategy.together(lambda: found.append(self._parts.read() if strategy.main else ({}, set())))
        sums, done = found[0]
        done = strategy.agree(done)
        left = [number for number in range(len(blocks)) if number not in done]
        mine = left[strategy.rank :: strategy.world]
        fresh: Sums = {}
        held: list[int] = []
        saved = time.monotonic()

        def save() -> None:
            nonlocal fresh, held
            if held:
                self._parts.write(fresh, held)
                add_up(sums, fresh)
                fresh, held = {}, []

        for turn in range(-(-len(left) // strategy.world)):  # as many on every rank: what follows is collective

            def add(turn: int = turn) -> None:
                if turn < len(mine):
                    add_up(fresh, self._of(blocks[mine[turn]]))
                    held.append(mine[turn])
                    self._alive()

            strategy.together(add)
            stopping = strategy.any(self._stop.seen())
            if strategy.any(stopping or time.monotonic() - saved > SAVE_S):
                saved = time.monotonic()
                strategy.together(save)  # what one rank cannot write ends all
            if stopping:
                self._stop.leave(strategy)
        add_up(sums, fresh)
        return self._everywhere(sums)

    def _of(self, block: Block) -> Sums:
        rows = {
            name: torch.from_numpy(values).to(self._strategy.device)
            for name, values in self._matrices.read(block).items()
            if name != "draw"
        }
        count = {f"{_CAPTIONS}{block.lang}": torch.tensor(float(len(rows["query"])), dtype=torch.float64)}
        if not len(rows["query"]):
            return count
        with torch.no_grad():
            return count | self._method.statistics(self.name, block.lang, rows)

    def _counted(self, sums: Sums) -> Sums:
        """The method's own sums. ConfigError where a language has no caption in them."""
        numbers = {name.removeprefix(_CAPTIONS): int(n) for name, n in sums.items() if name.startswith(_CAPTIONS)}
        self.captions = {lang: numbers.get(lang, 0) for lang in self._languages}
        if empty := [lang for lang, number in self.captions.items() if not number]:
            raise ConfigError(
                f"stage {self.name}: no caption in {', '.join(empty)} has text, a vector by the query encoder and an"
                " English feature in the training datasets, so there is nothing to fit on; leave the language out of"
                " data.query_features, or name columns with values"
            )
        return {name: tensor for name, tensor in sums.items() if not name.startswith(_CAPTIONS)}

    def _everywhere(self, sums: Sums) -> Sums:
        """Summed over ranks; a rank without a block has none of its own."""
        strategy = self._strategy
        shapes = {k: v for each in strategy.all({k: v.shape for k, v in sums.items()}) for k, v in each.items()}
        total = {}
        for name in sorted(shapes):
            own = sums.get(name, torch.zeros(shapes[name], dtype=torch.float64))
            total[name] = strategy.sum(own.to(strategy.device)).cpu()
        return total


def forget(folder: RunFolder) -> None:
    """Remove saved sums; the checkpoint of their stage is on disk."""
    shutil.rmtree(folder.path / _SUMS, ignore_errors=True)


class _Parts:
    """Sums of some blocks in files of their own, RUN/sums/STAGE/*.safetensors."""

    def __init__(self, folder: RunFolder, stage: str, blocks: Sequence[Block], datasets: Sequence[str]) -> None:
        self._run, self._folder = folder, folder.path / _SUMS / stage
        work = {"run": folder.digest, "blocks": [list(block) for block in blocks], "datasets": list(datasets)}
        self._of = digest_json(work)

    def read(self) -> tuple[Sums, set[int]]:
        """All that is there, and the numbers of its blocks. Damaged files and those of other work count for nothing."""
        sums: Sums = {}
        done: set[int] = set()
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                tensors, facts = tensorfile.read(path)
            except CheckpointError:
                facts = None
            if facts is None or facts.get("of") != self._of or done & set(facts["blocks"]):
                path.unlink()
                continue
            add_up(sums, tensors)
            done |= set(facts["blocks"])
        return sums, done

    def write(self, sums: Sums, blocks: Sequence[int]) -> None:
        """Raises StorageError on a full disk."""
        self._run.require_held()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{min(blocks):08d}-{secrets.token_hex(4)}.safetensors"
        tmp = path.with_suffix(".tmp")
        with disk_errors(path):
            tensorfile.write(tmp, sums, {"of": self._of, "blocks": list(blocks)})
            tmp.replace(path)


def add_up(sums: Sums, more: Mapping[str, Tensor]) -> None:
    """Add sums to others, by name. A planner calls it as well, to see what it takes."""
    for name, tensor in more.items():
        sums[name] = sums[name] + tensor if name in sums else tensor
