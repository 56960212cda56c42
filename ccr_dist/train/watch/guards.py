"""What may go wrong in a step without ending the run: it is counted, recorded and limited. Loss spikes are reported.

Every decision uses numbers that all ranks share, so all ranks decide alike. What is kept here in addition to
`RunProgress` has no influence on training and is not part of a checkpoint.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ccr_dist.config import RunConfig, StageConfig
from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.data.stream.batch import Batch
from ccr_dist.errors import DataBudgetError, NonFiniteError
from ccr_dist.train.processes import Processes
from ccr_dist.train.state.progress import RunProgress
from ccr_dist.train.state.run_folder import RunFolder

# losses remembered a language, those needed for a verdict, and how far off is a spike
WINDOW, LEAST, MADS = 64, 16, 8.0

Tell = Callable[[int, str, Mapping[str, Any]], None]


class Guards:
    """Of one stage. All methods are collective; each takes the step that was just done, before `done` moves on.

    tell: (step, name, values) of an event for the log.
    """

    def __init__(self, config: RunConfig, processes: Processes, folder: RunFolder, tell: Tell) -> None:
        self._config, self._processes, self._folder, self._tell = config, processes, folder, tell
        self._recent: dict[str, deque[float]] = {}

    def finite(
        self, done: RunProgress, batch: Batch, values: Mapping[str, Any], norms: Mapping[str, float], *, scaled: bool
    ) -> None:
        """Count a step that was not made, on any rank, since its gradient was not finite (`Engine.update`), or whose
        loss was not.

        Each leaves RUN/nonfinite/step-N.json, with what it takes to make it again. scaled: fp16, where an infinite norm
        is how the loss scale is found. Raises NonFiniteError past runtime.skipped_steps, or runtime.skipped_fraction of
        the run.
        """
        shown = {key: value for key, value in values.items() if isinstance(value, float)}
        if all(math.isfinite(value) for key, value in shown.items() if not (scaled and key == "grad_norm")):
            return
        done.skipped += 1
        ranks = self._processes.all({"slots": batch.slots.tolist(), "items": batch.items})
        record = self._folder.path / "nonfinite" / f"step-{done.step:08d}.json"

        def keep() -> None:
            facts = {
                "step": done.step,
                "stage": values["stage"],
                "k": batch.k,
                "lang": batch.lang,
                "seed": self._config.seed,
            }
            facts |= {"values": shown, "gradient_norms": dict(norms), "skipped": done.skipped, "ranks": ranks}
            self._folder.append("skipped.jsonl", {"step": done.step, **shown})
            record.parent.mkdir(exist_ok=True)
            replace_atomic(record, json.dumps(_strict(facts), indent=1, ensure_ascii=False).encode())

        self._processes.together(keep if self._processes.main else lambda: None)
        allowed, named = self.allowed
        if done.skipped > allowed:
            worst = [name for name, norm in norms.items() if not math.isfinite(norm)]
            raise NonFiniteError(
                f"step {done.step} of {self._folder.path}: loss or gradient norm is not finite: {shown}; {done.skipped}"
                f" such steps, {named} allows {allowed}. {len(worst)} of {len(norms)} gradients are not"
                f" finite{f', the first that of {worst[0]}' if worst else ''}; batch and norms are in {record}. The"
                " last checkpoint is intact; a lower lr, bf16 instead of fp16, or clip_norm are the usual remedies"
            )

    @property
    def allowed(self) -> tuple[int, str]:
        """How many steps of the run may not be made, and the option that says so."""
        runtime, total = self._config.runtime, sum(stage.steps for stage in self._config.stages.values())
        part = max(1, int(runtime.skipped_fraction * total))
        if part < runtime.skipped_steps:
            return part, f"runtime.skipped_fraction={runtime.skipped_fraction:g} of {total} steps"
        return runtime.skipped_steps, "runtime.skipped_steps"

    def substituted(self, done: RunProgress, batch: Batch, everywhere: int) -> None:
        """Count broken samples that others stood in for. Raises DataBudgetError past runtime.bad_samples and
        runtime.bad_fraction.
        """
        if everywhere == 0:
            return
        lists = self._processes.all(batch.substituted)
        done.substituted += everywhere

        def keep() -> None:
            for entry in (entry for entries in lists for entry in entries):
                self._folder.append("substituted.jsonl", {"step": done.step, **entry})

        self._processes.together(keep if self._processes.main else lambda: None)
        runtime, drawn = self._config.runtime, samples(self._config, done)
        allowed = str(runtime.bad_samples)
        if runtime.bad_samples:
            allowed += f", runtime.bad_fraction {runtime.bad_fraction:.2%} of the samples"
        if done.substituted > (
            max(runtime.bad_samples, math.floor(runtime.bad_fraction * drawn)) if runtime.bad_samples else 0
        ):
            raise DataBudgetError(
                f"{done.substituted} of {drawn} samples were broken and substituted; runtime.bad_samples allows"
                f" {allowed}; they are listed in {self._folder.path / 'substituted.jsonl'};"
                " `ccr-dist shards verify` checks the whole dataset"
            )

    def spike(self, done: RunProgress, batch: Batch, loss: float) -> None:
        """Log a loss far above the last ones of its language, with the items of its batch: some of them may be what is
        wrong.
        """
        recent = self._recent.setdefault(batch.lang, deque(maxlen=WINDOW))
        limit = bound(recent)
        if not math.isfinite(loss):
            return
        recent.append(loss)
        if loss <= limit:
            return
        items = [item for items in self._processes.all(batch.items) for item in items]
        self._tell(done.step, "spike", {"lang": batch.lang, "k": batch.k, "loss": loss, "bound": limit, "items": items})


def samples(config: RunConfig, done: RunProgress) -> int:
    """All that a run has drawn so far, in this stage and those before it."""
    stages = list(config.method.training_stages())
    earlier = [(config.stages[name], config.stages[name].steps) for name in stages[: stages.index(done.stage)]]
    so_far = [*earlier, (config.stages[done.stage], done.stage_step)]
    return sum(steps * stage.batch for stage, steps in so_far if isinstance(stage, StageConfig))


def bound(losses: deque[float]) -> float:
    """Median + MADS x the median absolute deviation, which is taken for 1 % of the median at least; infinite while
    there are few.
    """
    if len(losses) < LEAST:
        return math.inf
    middle = statistics.median(losses)
    return middle + MADS * max(statistics.median(abs(loss - middle) for loss in losses), 0.01 * abs(middle))


def _strict(value: Any) -> Any:
    """JSON knows no NaN: numbers that are not finite as strings."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
