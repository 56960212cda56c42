"""A translation job with the engine `shout`, run in this process."""

from __future__ import annotations

from typing import Any

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import JobSummary, run
from tests.jobs import Shout

XX = "caption.xx.shout"


def shout(dataset: Dataset, column: str = XX, engine: Shout | None = None, **kwargs: Any) -> JobSummary:
    return run(dataset, Translate(engine or Shout(), "caption.en"), column, progress=False, **kwargs)


def engine(**options: Any) -> Shout:
    return Shout(options=Shout.Options(**options))
