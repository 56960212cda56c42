"""A study on the toy corpus's configs, and results of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ccr_dist.config import as_dict
from ccr_dist.evaluate.protocols import language_result
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.study.plan import Run, StudyPlan, load_plan
from ccr_dist.train.measure import keep_ranks
from tests import toy

ITEMS = 60


def make_study(folder: Path, **changes: Any) -> Path:
    """FOLDER/study.yaml: zero-shot, and DASD with and without its generator, two seeds, on a prepared English run."""
    stage = {"steps": 3, "batch": 10, "lr": 1e-2}
    zero = toy.config(folder, {"name": "clip"}, {}, backbone={"kind": "dual"})
    dasd = toy.config(folder, {"name": "dasd"}, {"cla": stage, "cma": stage}, backbone={"kind": "dual"})
    values = {
        "name": "toy",
        "title": "A toy <study>",
        "out": str(folder / "out"),
        "seeds": [0, 1],
        "overrides": ["data.group=null"],
        "first": [{"name": "english", "config": zero.name}],
        "rows": [
            {"name": "zero", "label": "zero-shot", "config": zero.name, "group": "baselines"},
            {"name": "dasd", "label": "DASD", "config": dasd.name},
            {"name": "bare", "label": "DASD <bare>", "config": dasd.name, "overrides": ["method.use=none"]},
        ],
        "comparisons": [
            {"a": "dasd", "b": "zero", "claim": "DASD > zero-shot", "group": "adapters"},
            {"a": "dasd", "b": "bare", "claim": "a generator | helps", "group": "parts"},
        ],
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def study(configs: Path, out: Path, **changes: Any) -> StudyPlan:
    return load_plan(make_study(configs, out=str(out), **changes))


def result_of(run: Run, t2v: np.ndarray, v2t: np.ndarray, languages: tuple[str, ...] = ("es",)) -> RunResult:
    """Writes a run's results as `evaluate` does: one caption an item, the same ranks in each language."""
    item = np.arange(len(v2t))
    found = {
        lang: language_result(f"caption.{lang}", t2v, v2t, v2t, item, replicates=20, counts={"groups": len(v2t)})
        for lang in languages
    }
    result = RunResult(
        name=run.name, label="as measured", method=run.config.method.name, seed=run.config.seed, dataset="toy",
        split="test",
        dataset_digest="d", items=len(v2t), groups=len(v2t), languages=found, config=as_dict(run.config), test_reads=1,
        meta={"parameters": {"trainable": 5000 if run.config.stages else 0, "table": 1000, "total": 9000}},
    )  # fmt: skip
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(result.model_dump_json())
    arrays = {"t2v": t2v, "v2t": v2t, "item": item, "rows": np.arange(len(v2t)) + 3}
    keep_ranks(run.result.with_name("test.ranks.npz"), dict.fromkeys(languages, arrays))
    return result


def ranks(seed: int, scale: float, items: int = ITEMS) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    t2v, v2t = (1 + np.minimum(items - 1, random.exponential(scale, items)).astype(int) for _ in range(2))
    return t2v, v2t
